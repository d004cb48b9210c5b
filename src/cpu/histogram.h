// ops/histogram.h on the CPU.
#pragma once

#include "core/context.h"

namespace switchyard::cpu {

template <class T>
void score_histogram(Tensor count_EN, Tensor score_TE, Tensor skip_T, double low, double high, Context& ctx);
template <class T>
void margin_histogram(Tensor count_EN, Tensor score_TE, Tensor cutoff_T, Tensor skip_T, double low, double high,
                      Context& ctx);

}  // namespace switchyard::cpu
