// Quantiles from histograms (ROUTERS.md, section 1: quantile, expert_threshold).   E experts, N bins
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace switchyard::router {

constexpr std::int64_t kQuantileBins = 1000;

// The q quantile of what was counted in equal bins of [low, high): where the running count reaches q times the
// whole, straight between the borders of that bin. There is at least one count.
double histogram_quantile(std::span<const double> count_N, double low, double high, double q);

// Of each expert's row of count_EN.
std::vector<double> histogram_quantiles(std::span<const double> count_EN, std::size_t n_experts, double low,
                                        double high, double q);

}  // namespace switchyard::router
