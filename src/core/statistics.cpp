#include "core/statistics.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "core/error.h"

namespace switchyard {

double quantile_of(std::vector<double> values, double share) {
  SY_CHECK(!values.empty() && share >= 0 && share <= 1, "the {} quantile of {} values", share, values.size());
  std::sort(values.begin(), values.end());
  const double at = share * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::size_t>(std::floor(at));
  const std::size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (at - static_cast<double>(below)) * (values[above] - values[below]);
}

Spread spread_of(std::vector<double> values) {
  const double median = quantile_of(values, 0.5);
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  return {median, *low, *high};
}

}  // namespace switchyard
