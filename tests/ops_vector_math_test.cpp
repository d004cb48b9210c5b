#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <vector>

#include "core/rng.h"
#include "ops/cpu/reduce.h"
#include "ops/cpu/vector_math.h"

namespace switchyard::ops::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// The largest relative error over about a million floats of every magnitude and both signs, where the true
// result is a normal float.
template <class F, class G>
double worst_error(F&& function, G&& truth) {
  double worst = 0;
  for (std::uint64_t bits = 0; bits < (1ull << 32); bits += 4099) {
    const float x = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    const double expected = truth(static_cast<double>(x));
    if (!(expected >= FLT_MIN && expected <= FLT_MAX)) continue;
    worst = std::max(worst, std::abs(static_cast<double>(function(x)) - expected) / expected);
  }
  return worst;
}

// One unit in the last place is 1.2e-7 of a number at most; the polynomial and its last rounding stay within
// that.
TEST(VectorMath, ExpIsWithinOneUnitInTheLastPlace) {
  const double worst = worst_error([](float x) { return exp_of(x); }, [](double x) { return std::exp(x); });
  EXPECT_LE(worst, 1.2e-7);
  EXPECT_GT(worst, 1e-9);  // the sweep did compare something
}

// exp, the sum and the quotient: three roundings of at most 1.2e-7 each, less where they cancel.
TEST(VectorMath, SigmoidIsWithinThreeRoundings) {
  const double worst =
      worst_error([](float x) { return sigmoid_of(x); }, [](double x) { return 1 / (1 + std::exp(-x)); });
  EXPECT_LE(worst, 3e-7);
  EXPECT_GT(worst, 1e-9);
}

// Positive normal numbers below a quarter of the largest. The polynomial has one unit in the last place; the
// parts of ln 2 and the correction of log1p add roundings of the size of the result. Where the logarithm is
// below FLT_MIN (around x = 1) nothing is compared.
TEST(VectorMath, LogarithmsAreWithinThreeRoundings) {
  const auto usable = [](double x) { return x >= FLT_MIN && x <= FLT_MAX / 4; };
  const auto of_log = [&](double x) { return usable(x) ? std::abs(std::log(x)) : 0; };
  const auto of_log1p = [&](double x) { return usable(x) ? std::log1p(x) : 0; };
  const double log = worst_error([](float x) { return std::abs(log_of(x)); }, of_log);
  const double log1p = worst_error([](float x) { return log1p_of(x); }, of_log1p);
  EXPECT_LE(log, 3e-7);
  EXPECT_LE(log1p, 3e-7);
  EXPECT_GT(std::min(log, log1p), 1e-9);  // the sweeps did compare something
  EXPECT_EQ(log_of(1.0f), 0.0f);
  EXPECT_EQ(log1p_of(0.0f), 0.0f);
}

// In long double, by the quarter of the circle whose angle is least, so that nothing cancels where the cosine
// is near 0.
double true_normal(std::uint32_t a, std::uint32_t b) {
  constexpr long double kTurn = 2 * std::numbers::pi_v<long double>;
  const long double u = (a + 0.5L) * 0x1.0p-32L, v = (b + 0.5L) * 0x1.0p-32L;
  const long double cosine = v < 0.125L   ? std::cos(kTurn * v)
                             : v < 0.375L ? -std::sin(kTurn * (v - 0.25L))
                             : v < 0.625L ? -std::cos(kTurn * (v - 0.5L))
                             : v < 0.875L ? std::sin(kTurn * (v - 0.75L))
                                          : std::cos(kTurn * (v - 1));
  return static_cast<double>(std::sqrt(-2 * std::log(u)) * cosine);
}

// Logarithm, root, angle, cosine and product: each rounds to 1.1e-16 of itself, or twice that, and the root
// halves what the logarithm has.
TEST(VectorMath, NormalIsBoxAndMullersToSixRoundings) {
  const auto error = [](std::uint32_t a, std::uint32_t b) {
    return std::abs(normal_of(a, b) / true_normal(a, b) - 1);
  };
  double worst = 0;
  for (std::uint64_t i = 0; i < 200'000; ++i) {
    const auto words = Rng(5, RngPurpose::router_noise, 1).block(i);
    worst = std::max(worst, error(words[0], words[1]));
  }
  // Both ends and both sides of each place at which another branch or a power of two begins.
  std::vector<std::uint32_t> edges{0, 1, 0x5a8277ff, 0x5a827800, 0xb504efff, 0xb504f000};
  for (std::uint32_t eighth = 0; eighth < 8; ++eighth)
    for (const std::uint32_t side : {0u, 1u, ~0u}) edges.push_back((eighth << 29) + side);
  for (const std::uint32_t a : edges)
    for (const std::uint32_t b : edges) worst = std::max(worst, error(a, b));
  EXPECT_LE(worst, 6 * 1.2e-16);
  EXPECT_GT(worst, 1e-17);  // something was compared
}

// The generator's own: its angle is rounded before the cosine is taken, an error of 1e-15 of a value of order
// one.
TEST(VectorMath, NormalIsTheGenerators) {
  const Rng rng(5, RngPurpose::router_noise, 1);
  for (std::uint64_t i = 0; i < 10'000; ++i) {
    const auto words = rng.block(i);
    ASSERT_NEAR(normal_of(words[0], words[1]), rng.normal(i), 1e-14);
  }
}

TEST(VectorMath, EndsOfTheRange) {
  EXPECT_EQ(exp_of(0.0f), 1.0f);
  EXPECT_EQ(exp_of(-kInfinity), 0.0f);
  EXPECT_EQ(exp_of(-1e30f), 0.0f);
  EXPECT_EQ(exp_of(-88.0f), 0.0f);  // subnormal: flushed
  EXPECT_TRUE(std::isfinite(exp_of(88.72f)));
  EXPECT_TRUE(std::isfinite(exp_of(88.7228317f)));  // the last one before the overflow
  EXPECT_EQ(exp_of(88.7228394f), kInfinity);
  EXPECT_EQ(exp_of(1e30f), kInfinity);
  EXPECT_EQ(exp_of(kInfinity), kInfinity);
  EXPECT_TRUE(std::isnan(exp_of(kNan)));
  EXPECT_EQ(sigmoid_of(kInfinity), 1.0f);
  EXPECT_EQ(sigmoid_of(-kInfinity), 0.0f);
  EXPECT_TRUE(std::isnan(sigmoid_of(kNan)));
}

// The order that sum_in_lanes promises, written out.
template <class Sum>
Sum sum_in_sixteen_lanes(const std::vector<Sum>& term) {
  Sum lane[16] = {};
  for (std::size_t i = 0; i < term.size(); ++i) lane[i % 16] += term[i];
  for (std::size_t width = 8; width > 0; width /= 2)
    for (std::size_t l = 0; l < width; ++l) lane[l] += lane[l + width];
  return lane[0];
}

template <class Sum>
void expect_sums_in_lanes() {
  for (std::size_t n : {0, 1, 7, 15, 16, 17, 31, 32, 33, 192, 1023}) {
    std::vector<Sum> term(n);
    for (std::size_t i = 0; i < n; ++i)
      term[i] = std::sin(static_cast<Sum>(i + 1)) * std::exp2(static_cast<Sum>(i % 9));
    const auto at = [&](std::int64_t i) { return term[static_cast<std::size_t>(i)]; };
    EXPECT_EQ(sum_in_lanes<Sum>(static_cast<std::int64_t>(n), at), sum_in_sixteen_lanes(term)) << n << " terms";
  }
}

TEST(SumInLanes, AddsInTheOrderThatItPromises) {
  expect_sums_in_lanes<float>();
  expect_sums_in_lanes<double>();
}

}  // namespace
}  // namespace switchyard::ops::cpu
