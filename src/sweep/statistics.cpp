#include "sweep/statistics.h"

#include <algorithm>
#include <boost/math/distributions/non_central_t.hpp>
#include <boost/math/distributions/students_t.hpp>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/error.h"

namespace switchyard::sweep {

namespace {

// A t-test at the level of 0.05, two-sided, finds a true difference in this share of repetitions at least.
constexpr double kPower = 0.8;

// The share in which n pairs find a difference of `size` standard deviations.
double power_of(long n, double size) {
  const double freedom = static_cast<double>(n - 1), least = t_quantile(0.975, freedom);
  const boost::math::non_central_t shifted(freedom, size * std::sqrt(static_cast<double>(n)));
  return boost::math::cdf(boost::math::complement(shifted, least)) + boost::math::cdf(shifted, -least);
}

}  // namespace

double mean_of(const std::vector<double>& values) {
  SY_CHECK(!values.empty());
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

std::optional<double> standard_error(const std::vector<double>& values) {
  if (values.size() < 2) return std::nullopt;
  const double mean = mean_of(values), n = static_cast<double>(values.size());
  double sum = 0;
  for (const double value : values) sum += (value - mean) * (value - mean);
  return std::sqrt(sum / (n - 1) / n);
}

double p_of_t(double t, double freedom) {
  return 2 * boost::math::cdf(boost::math::complement(boost::math::students_t(freedom), std::abs(t)));
}

double t_quantile(double p, double freedom) {
  return boost::math::quantile(boost::math::students_t(freedom), p);
}

std::optional<PairedTest> paired_test(const std::vector<double>& differences) {
  const auto error = standard_error(differences);
  if (!error) return std::nullopt;
  PairedTest test{.mean = mean_of(differences), .std_error = *error};
  if (*error == 0) {
    test.t = test.mean == 0 ? 0 : std::copysign(std::numeric_limits<double>::infinity(), test.mean);
    test.p = test.mean == 0 ? 1 : 0;
    return test;
  }
  test.t = test.mean / *error;
  test.p = p_of_t(test.t, static_cast<double>(differences.size() - 1));
  return test;
}

std::optional<long> seeds_needed(double difference, double deviation) {
  constexpr long kMost = 1'000'000;
  if (difference == 0) return std::nullopt;
  if (deviation == 0) return 2;
  // Two are enough from 12 deviations on; the library's series overflow far beyond that.
  const double size = std::min(std::abs(difference) / deviation, 100.0);
  long low = 1, high = 2;  // `low` is not enough; power grows with n
  while (power_of(high, size) < kPower) {
    if (high == kMost) return std::nullopt;
    low = high;
    high = std::min(2 * high, kMost);
  }
  while (high - low > 1) {
    const long middle = low + (high - low) / 2;
    (power_of(middle, size) < kPower ? low : high) = middle;
  }
  return high;
}

}  // namespace switchyard::sweep
