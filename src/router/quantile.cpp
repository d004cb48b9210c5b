#include "router/quantile.h"

#include <numeric>

#include "core/error.h"

namespace switchyard::router {

double histogram_quantile(std::span<const double> count_N, double low, double high, double q) {
  const double target = q * std::accumulate(count_N.begin(), count_N.end(), 0.0);
  const double width = (high - low) / static_cast<double>(count_N.size());
  double before = 0;
  for (std::size_t i = 0; i < count_N.size(); ++i) {
    if (count_N[i] > 0 && before + count_N[i] >= target)
      return low + (static_cast<double>(i) + (target - before) / count_N[i]) * width;
    before += count_N[i];
  }
  SY_CHECK(false, "a quantile of nothing");
  return low;
}

std::vector<double> histogram_quantiles(std::span<const double> count_EN, std::size_t n_experts, double low,
                                        double high, double q) {
  const std::size_t bins = count_EN.size() / n_experts;
  std::vector<double> quantile_E;
  for (std::size_t e = 0; e < n_experts; ++e)
    quantile_E.push_back(histogram_quantile(count_EN.subspan(e * bins, bins), low, high, q));
  return quantile_E;
}

}  // namespace switchyard::router
