// Histograms of the gap between scores and the value in force, one an expert, from which quantiles over a whole
// global batch are read. The bins are finest around 0, where the solution is, and grow with the distance, so
// that no scale of the scores is assumed.   T tokens, E experts, N = 2 * kGapBins bins
#pragma once

#include "core/context.h"
#include "core/gap_bins.h"

namespace switchyard::ops {

// Both count over the tokens with skip_T >= 0. count_EN f64, set; bins in ascending order of the gap
// (gap_bins.h).
//
// The gap score_TE[t,e] - value_E[e].
void score_gap_histogram(Tensor count_EN, Tensor score_TE, Tensor value_E, Tensor skip_T, Context& ctx);
// The gap cutoff_T[t] - choice_TE[t,e].
void cutoff_gap_histogram(Tensor count_EN, Tensor choice_TE, Tensor cutoff_T, Tensor skip_T, Context& ctx);

}  // namespace switchyard::ops
