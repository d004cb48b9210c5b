// Histograms of scores, one an expert, from which quantiles over a whole global batch are read.
//   T tokens, E experts, N bins
#pragma once

#include "core/context.h"

namespace switchyard::ops {

// Both count over the tokens with skip_T >= 0, into N equal bins of [low, high); what lies outside counts in
// the first or last bin. count_EN f64, set.
//
// The scores themselves.
void score_histogram(Tensor count_EN, Tensor score_TE, Tensor skip_T, double low, double high, Context& ctx);
// The margins cutoff_T[t] - score_TE[t,e].
void margin_histogram(Tensor count_EN, Tensor score_TE, Tensor cutoff_T, Tensor skip_T, double low, double high,
                      Context& ctx);

}  // namespace switchyard::ops
