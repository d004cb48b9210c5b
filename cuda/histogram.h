// Histograms of the gap between scores and the value in force, on the device; bins and formulas:
// ops/histogram.h. Scores f32, skip_T i32. count_EN, f64, may lie on the host; then the device is waited for.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cuda {

void score_gap_histogram(Tensor count_EN, Tensor score_TE, Tensor value_E, Tensor skip_T, Context& ctx);
void cutoff_gap_histogram(Tensor count_EN, Tensor choice_TE, Tensor cutoff_T, Tensor skip_T, Context& ctx);

}  // namespace switchyard::ops::cuda
