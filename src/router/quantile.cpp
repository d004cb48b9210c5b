#include "router/quantile.h"

#include <numeric>

#include "core/error.h"

namespace switchyard::router {

std::optional<double> gap_quantile(std::span<const double> count_N, double q) {
  constexpr auto kSide = static_cast<std::size_t>(kGapBins);
  SY_CHECK(count_N.size() == 2 * kSide, "{} bins", count_N.size());
  const auto& border = gap_borders();
  const double target = q * std::accumulate(count_N.begin(), count_N.end(), 0.0);
  double before = 0;
  for (std::size_t i = 0; i < count_N.size(); ++i) {
    if (count_N[i] > 0 && before + count_N[i] >= target) {
      const double low = i < kSide ? -border[kSide - i] : border[i - kSide];
      const double high = i < kSide ? -border[kSide - 1 - i] : border[i - kSide + 1];
      return low + (high - low) * (target - before) / count_N[i];
    }
    before += count_N[i];
  }
  return std::nullopt;
}

std::vector<double> gap_quantiles(std::span<const double> count_EN, double q) {
  constexpr auto kBins = static_cast<std::size_t>(2 * kGapBins);
  std::vector<double> quantile_E;
  for (std::size_t first = 0; first < count_EN.size(); first += kBins)
    quantile_E.push_back(gap_quantile(count_EN.subspan(first, kBins), q).value_or(0));
  return quantile_E;
}

}  // namespace switchyard::router
