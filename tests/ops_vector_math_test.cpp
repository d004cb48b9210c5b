#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

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
