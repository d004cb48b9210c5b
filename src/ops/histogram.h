// Histograms of the gap between scores and the value in force, one an expert, from which quantiles over a whole
// global batch are read. The bins are finest around 0, where the solution is, and grow with the distance, so
// that no scale of the scores is assumed.   T tokens, E experts, N = 2 * kGapBins bins
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include "ops/operator.h"

namespace switchyard::ops {

// The bins of a gap g: kGapBins on each side of 0, with borders e_0 = 0 and e_i = 1e-6 * 1e8^((i-1)/511), i = 1
// to 512. On the right side bin i holds e_i <= g < e_(i+1), on the left one the same of -g, mirrored; what is
// farther than e_512 = 100 counts in the last bin of its side.
constexpr std::int64_t kGapBins = 512;  // a side

inline const std::array<double, kGapBins + 1>& gap_borders() {
  static const std::array<double, kGapBins + 1> borders = [] {
    std::array<double, kGapBins + 1> e{};
    for (std::int64_t i = 1; i <= kGapBins; ++i)
      e[static_cast<std::size_t>(i)] =
          1e-6 * std::pow(1e8, static_cast<double>(i - 1) / static_cast<double>(kGapBins - 1));
    return e;
  }();
  return borders;
}

// Both count over the tokens with token_T >= 0. count_EN f64, set; bins in ascending order of the gap.
//
// The gap score_TE[t,e] - value_E[e].
SY_OPERATOR(score_gap_histogram, Tensor count_EN, Tensor score_TE, Tensor value_E, Tensor token_T,
            Context& ctx);
// The gap cutoff_T[t] - choice_TE[t,e].
SY_OPERATOR(cutoff_gap_histogram, Tensor count_EN, Tensor choice_TE, Tensor cutoff_T, Tensor token_T,
            Context& ctx);

}  // namespace switchyard::ops
