#include "sweep/statistics.h"

#include <cmath>
#include <limits>
#include <numeric>

#include "core/error.h"

namespace switchyard::sweep {

namespace {

// The regularised incomplete beta function I_x(a, b) by its continued fraction, with the modified Lentz
// algorithm (Abramowitz and Stegun 26.5.8).
double continued_fraction(double a, double b, double x) {
  constexpr double kTiny = 1e-300;
  const auto away_from_zero = [](double value) { return std::abs(value) < kTiny ? kTiny : value; };
  double c = 1, d = 1 / away_from_zero(1 - (a + b) * x / (a + 1)), result = d;
  for (int m = 1; m <= 10'000; ++m) {
    const double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    d = 1 / away_from_zero(1 + even * d);
    c = away_from_zero(1 + even / c);
    result *= c * d;
    const double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    d = 1 / away_from_zero(1 + odd * d);
    c = away_from_zero(1 + odd / c);
    const double factor = c * d;
    result *= factor;
    if (std::abs(factor - 1) < 1e-15) break;
  }
  return result;
}

double incomplete_beta(double a, double b, double x) {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  const double front =
      std::exp(std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) + a * std::log(x) + b * std::log1p(-x));
  // The fraction converges fast on one side of the mean alone; the other is its complement.
  return x < (a + 1) / (a + b + 2) ? front * continued_fraction(a, b, x) / a
                                   : 1 - front * continued_fraction(b, a, 1 - x) / b;
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
  return incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t));
}

double t_quantile(double p, double freedom) {
  if (p < 0.5) return -t_quantile(1 - p, freedom);
  double low = 0, high = 1;
  while (1 - p_of_t(high, freedom) / 2 < p) high *= 2;
  for (int i = 0; i < 200; ++i) {
    const double middle = (low + high) / 2;
    (1 - p_of_t(middle, freedom) / 2 < p ? low : high) = middle;
  }
  return (low + high) / 2;
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
  if (difference == 0) return std::nullopt;
  const auto enough = [&](long n) {
    const double freedom = static_cast<double>(n - 1);
    const double needed = (t_quantile(0.975, freedom) + t_quantile(0.8, freedom)) * deviation / difference;
    return static_cast<double>(n) >= needed * needed;
  };
  constexpr long kMost = 1'000'000;
  long low = 1, high = 2;  // `low` is not enough, and the need falls as n grows
  while (!enough(high)) {
    low = high;
    high *= 2;
    if (high > kMost) return std::nullopt;
  }
  while (high - low > 1) {
    const long middle = low + (high - low) / 2;
    (enough(middle) ? high : low) = middle;
  }
  return high;
}

}  // namespace switchyard::sweep
