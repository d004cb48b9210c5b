// ops/histogram.h on the CPU.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cpu {

template <class T>
void score_gap_histogram(Tensor count_EN, Tensor score_TE, Tensor value_E, Tensor skip_T, Context& ctx);
template <class T>
void cutoff_gap_histogram(Tensor count_EN, Tensor choice_TE, Tensor cutoff_T, Tensor skip_T, Context& ctx);

}  // namespace switchyard::ops::cpu
