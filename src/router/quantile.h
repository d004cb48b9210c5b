// Quantiles from histograms of gaps (ROUTERS.md, section 1: quantile, expert_threshold).   E experts, N bins
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "core/gap_bins.h"

namespace switchyard::router {

// The q quantile of what was counted in one expert's bins (gap_bins.h): where the running count reaches q times
// the whole, straight between the borders of that bin. None where nothing was counted.
std::optional<double> gap_quantile(std::span<const double> count_N, double q);

// Of each expert's row of count_EN; 0 where nothing was counted: the value in force stays.
std::vector<double> gap_quantiles(std::span<const double> count_EN, double q);

}  // namespace switchyard::router
