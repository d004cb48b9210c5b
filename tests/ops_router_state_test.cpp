#include "ops/router_state.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>

#include "ops/routing.h"
#include "poisoned_context.h"
#include "tensors.h"

namespace switchyard::test {
namespace {

using Numbers = std::vector<double>;
constexpr DType kTypes[] = {DType::f32, DType::f64};

OwnedTensor state(DType dtype, Shape shape, const Numbers& numbers) {
  OwnedTensor tensor(shape, dtype);
  fill(tensor, numbers);
  return tensor;
}

TEST(BalanceBias, MovesByTheSpeedTowardsTheMean) {
  for (const DType dtype : kTypes) {
    PoisonedContext ctx;
    const OwnedTensor bias({4}, dtype);
    fill(bias, {0, 1, -1, 0.5});
    ops::balance_bias(bias, doubles({0, 8, 3, 4}), 0.25, false, ctx);  // mean 3.75
    EXPECT_EQ(values(bias), (Numbers{0.25, 0.75, -0.75, 0.25}));
    ops::balance_bias(bias, doubles({5, 5, 5, 5}), 0.25, false, ctx);  // balanced: sign(0) = 0
    EXPECT_EQ(values(bias), (Numbers{0.25, 0.75, -0.75, 0.25}));
    ops::balance_bias(bias, doubles({2, 4, 6, 4}), 0.25, false, ctx);  // mean 4
    EXPECT_EQ(values(bias), (Numbers{0.5, 0.75, -1, 0.25}));
  }
}

// Signs 1, -1, 1, -1 have no mean; 1, 1, 1, -1 have 1/2, and a bias that only gains experts below the mean does
// not rise.
TEST(BalanceBias, MeanFreeItKeepsTheMeanOfTheBias) {
  for (const DType dtype : kTypes) {
    PoisonedContext ctx;
    const OwnedTensor bias = state(dtype, {4}, {0, 1, -1, 0.5});
    ops::balance_bias(bias, doubles({0, 8, 1, 7}), 0.25, true, ctx);
    EXPECT_EQ(values(bias), (Numbers{0.25, 0.75, -0.75, 0.25}));
    ops::balance_bias(bias, doubles({1, 1, 1, 9}), 0.25, true, ctx);
    EXPECT_EQ(values(bias), (Numbers{0.375, 0.875, -0.625, -0.125}));
    ops::balance_bias(bias, doubles({0, 0, 0, 0}), 0.25, true, ctx);  // nothing was counted
    EXPECT_EQ(values(bias), (Numbers{0.375, 0.875, -0.625, -0.125}));
  }
}

// Loads 4, 3, 1, 8 of a mean of 4: v = 0, 1/4, 3/4, -1.
TEST(BalanceBiasSoftly, MovesByTheMomentumOfClampedSteps) {
  for (const DType dtype : kTypes) {
    PoisonedContext ctx;
    const double tolerance = dtype == DType::f32 ? 1e-7 : 1e-16;  // one rounding of numbers of some tenths
    const OwnedTensor bias = state(dtype, {4}, {0, 1, -1, 0.5}), momentum = state(dtype, {4}, {0, 0.5, 0, 0});
    Numbers u = {0, std::tanh(0.5), std::tanh(1.5), std::tanh(-2.0)};
    const double mean = (u[0] + u[1] + u[2] + u[3]) / 4;
    for (double& each : u) each = 0.25 * (each - mean);
    Numbers m = {0.25 * u[0], 0.375 + 0.25 * u[1], 0.25 * u[2], 0.25 * u[3]};
    ops::balance_bias_softly(bias, momentum, doubles({4, 3, 1, 8}), {.speed = 0.25, .kappa = 2, .keep = 0.75},
                             ctx);
    EXPECT_TRUE(all_near(values(momentum), m, 0, tolerance));
    EXPECT_TRUE(all_near(values(bias), {m[0], 1 + m[1], -1 + m[2], 0.5 + m[3]}, 0, 2 * tolerance));
    // Balanced, the bias goes on by what is left of the momentum.
    ops::balance_bias_softly(bias, momentum, doubles({4, 4, 4, 4}), {.speed = 0.25, .kappa = 2, .keep = 0.5},
                             ctx);
    for (double& each : m) each *= 1.5;
    EXPECT_TRUE(all_near(values(bias), {m[0], 1 + m[1], -1 + m[2], 0.5 + m[3]}, 0, 4 * tolerance));
    // Nothing was counted: nothing moves.
    const Numbers bias_before = values(bias), momentum_before = values(momentum);
    ops::balance_bias_softly(bias, momentum, doubles({0, 0, 0, 0}), {.speed = 0.25, .kappa = 2, .keep = 0.5},
                             ctx);
    EXPECT_EQ(values(bias), bias_before);
    EXPECT_EQ(values(momentum), momentum_before);
  }
}

TEST(FollowLoadBias, IsMinusTheLogarithmOfTheAverageLoad) {
  for (const DType dtype : kTypes) {
    PoisonedContext ctx;
    const double tolerance = dtype == DType::f32 ? 1e-6 : 1e-14;  // a rounded load, its logarithm times 1/2
    const OwnedTensor bias = state(dtype, {3}, {9, 9, 9}), load = state(dtype, {3}, {1, 1, 1});
    ops::follow_load_bias(bias, load, doubles({2, 4, 0}), 0.5, 0.5, ctx);  // of their mean: 1, 2, 0
    EXPECT_EQ(values(load), (Numbers{1, 1.5, 0.5}));
    const double mean = (std::log(1.5) + std::log(0.5)) / 3;
    EXPECT_TRUE(all_near(values(bias),
                         {0.5 * mean, -0.5 * (std::log(1.5) - mean), -0.5 * (std::log(0.5) - mean)}, 0,
                         tolerance));
    ops::follow_load_bias(bias, load, doubles({0, 0, 0}), 0.5, 0.5, ctx);  // nothing was counted
    EXPECT_EQ(values(load), (Numbers{1, 1.5, 0.5}));
    // However long an expert has nothing, its bias is that of the least load.
    ops::follow_load_bias(bias, load, doubles({3, 3, 0}), 0, 0.5, ctx);
    EXPECT_EQ(values(load), (Numbers{1.5, 1.5, 0}));
    const double least = std::log(ops::kLeastLoad), middle = (2 * std::log(1.5) + least) / 3;
    EXPECT_TRUE(
        all_near(values(bias),
                 {-0.5 * (std::log(1.5) - middle), -0.5 * (std::log(1.5) - middle), -0.5 * (least - middle)}, 0,
                 8 * tolerance));
  }
}

// The middle of the bin of a gap, and a row of bins in which it was counted.
std::int64_t bin_of(double gap) {
  std::int64_t i = 0;
  while (i + 1 < ops::kGapBins && ops::gap_borders()[static_cast<std::size_t>(i + 1)] <= std::abs(gap)) ++i;
  return gap < 0 ? ops::kGapBins - 1 - i : ops::kGapBins + i;
}

TEST(FollowQuantiles, MovesByAShareOfTheQuantileOfEachExpert) {
  for (const DType dtype : kTypes) {
    PoisonedContext ctx;
    const OwnedTensor value = state(dtype, {3}, {1, 2, 3}), count({3, 2 * ops::kGapBins}, DType::f64);
    fill(count, Numbers(3 * 2 * ops::kGapBins, 0));
    for (const double gap : {-0.5, -0.25, 0.125, 4.0}) set(count, bin_of(gap), 1);
    set(count, 2 * ops::kGapBins + bin_of(2.0), 7);
    ops::follow_quantiles(value, count, 0.5, 0.75, ctx);
    // Half of four is reached at the end of -0.25's bin, half of seven in the middle of 2's; bins are 4 percent
    // wide. Of the third expert nothing was counted.
    EXPECT_NEAR(value[0], 1 + 0.25 * -0.25, 0.25 * 0.01);
    EXPECT_NEAR(value[1], 2 + 0.25 * 2, 0.25 * 0.08);
    EXPECT_EQ(value[2], 3);
  }
}

// The bins one after the other, by the definition.
double plain_quantile(const Numbers& count_N, double q) {
  const auto& border = ops::gap_borders();
  const double target = q * std::accumulate(count_N.begin(), count_N.end(), 0.0);
  double before = 0;
  for (std::size_t i = 0; i < count_N.size(); ++i) {
    constexpr auto kSide = static_cast<std::size_t>(ops::kGapBins);
    if (count_N[i] > 0 && before + count_N[i] >= target) {
      const double low = i < kSide ? -border[kSide - i] : border[i - kSide];
      const double high = i < kSide ? -border[kSide - 1 - i] : border[i - kSide + 1];
      return low + (high - low) * (target - before) / count_N[i];
    }
    before += count_N[i];
  }
  return 0;
}

TEST(FollowQuantiles, EqualsReadingOneBinAfterTheOther) {
  std::mt19937 random(1);
  const auto below = [&random](int n) { return std::uniform_int_distribution<int>(0, n - 1)(random); };
  for (int round = 0; round < 200; ++round) {
    // From one bin in all to nearly every one; counts as of a whole global batch.
    const int filled = 1 << below(11);
    Numbers count_N(2 * ops::kGapBins, 0);
    for (int i = 0; i < filled; ++i)
      count_N[static_cast<std::size_t>(below(2 * ops::kGapBins))] += 1 + below(round % 2 == 0 ? 3 : 1 << 20);
    for (const double q : {0.0, 0.125, 0.5, 1.0, static_cast<double>(below(1000)) / 1000}) {
      Context ctx;
      const OwnedTensor value = doubles({0}), count = state(DType::f64, {1, 2 * ops::kGapBins}, count_N);
      ops::follow_quantiles(value, count, q, 0, ctx);
      EXPECT_EQ(value[0], plain_quantile(count_N, q)) << "q " << q << ", " << filled << " of the bins";
    }
  }
}

TEST(FollowMeans, MovesByTheMeanOfWhatCame) {
  for (const DType dtype : kTypes) {
    PoisonedContext ctx;
    const OwnedTensor mean = state(dtype, {2, 2}, {1, 2, 3, 4});
    ops::follow_means(mean, state(DType::f64, {2, 2}, {8, 4, 9, 9}), doubles({2, 0}), 0.75, ctx);
    EXPECT_EQ(values(mean), (Numbers{0.75 + 0.25 * 4, 1.5 + 0.25 * 2, 3, 4}));
  }
}

TEST(FollowMoments, TakesTheFirstAsTheyAreAndNothingFromNoTokens) {
  for (const DType dtype : kTypes) {
    PoisonedContext ctx;
    const OwnedTensor mean = state(dtype, {1}, {0}), variance = state(dtype, {1}, {0});
    const auto follow = [&](const Numbers& moments) {
      ops::follow_moments(mean, variance, doubles(moments), 0.75, ctx);
      return Numbers{mean[0], variance[0]};
    };
    EXPECT_EQ(follow({0, 0, 0}), (Numbers{0, 0}));
    EXPECT_EQ(follow({4, 8, 24}), (Numbers{2, 2}));  // 24 / 4 - 2^2
    EXPECT_EQ(follow({2, 12, 72}), (Numbers{0.75 * 2 + 0.25 * 6, 0.75 * 2}));
    EXPECT_EQ(follow({0, 0, 0}), (Numbers{3, 1.5}));
  }
}

TEST(FollowTokenMeans, TakesTheFirstAsItIsAndLeavesWhatDidNotCome) {
  Context ctx;
  const test::OwnedTensor value_3 = test::doubles({0, 4, 6});
  ops::follow_token_means(value_3, test::doubles({6, 16, 0, 2, 2, 0}), 0.75, ctx);
  EXPECT_EQ(test::values(value_3), (std::vector<double>{3, 5, 6}));
}

TEST(FollowRatios, DividesAveragedSumsByAveragedCounts) {
  for (const DType dtype : kTypes) {
    PoisonedContext ctx;
    const OwnedTensor key({2, 2}, dtype), ema = state(dtype, {2, 2}, {4, 8, 0, 0}),
                                          ema_count = state(dtype, {2}, {2, 0});
    ops::follow_ratios(key, ema, ema_count, state(DType::f64, {2, 2}, {8, 0, 0, 0}), doubles({6, 0}), 0.5, ctx);
    EXPECT_EQ(values(ema), (Numbers{6, 4, 0, 0}));
    EXPECT_EQ(values(ema_count), (Numbers{4, 0}));
    EXPECT_EQ(values(key), (Numbers{1.5, 1, 0, 0}));  // nothing by nothing: 0
  }
}

TEST(RouterState, RefusesOtherShapesAndTypes) {
  Context ctx;
  const OwnedTensor three = state(DType::f32, {3}, {1, 2, 3}), matrix({3, 2}, DType::f32);
  EXPECT_THROW(ops::balance_bias(three, doubles({1, 2}), 0.1, false, ctx), std::logic_error);
  EXPECT_THROW(ops::balance_bias(three, three, 0.1, true, ctx), std::logic_error);
  EXPECT_THROW(ops::balance_bias_softly(three, matrix, doubles({1, 2, 3}), {0.1, 1, 0}, ctx), std::logic_error);
  EXPECT_THROW(ops::balance_bias_softly(three, three, doubles({1, 2}), {0.1, 1, 0}, ctx), std::logic_error);
  EXPECT_THROW(ops::follow_load_bias(three, matrix, doubles({1, 2, 3}), 0.5, 0.1, ctx), std::logic_error);
  EXPECT_THROW(ops::follow_load_bias(three, three, three, 0.5, 0.1, ctx), std::logic_error);
  EXPECT_THROW(ops::follow_quantiles(three, matrix, 0.5, 0.5, ctx), std::logic_error);
  EXPECT_THROW(ops::follow_quantile_bias(three, matrix, 0.5, 0.5, ctx), std::logic_error);
  EXPECT_THROW(ops::follow_means(matrix, matrix, doubles({1, 2, 3}), 0.5, ctx), std::logic_error);
  EXPECT_THROW(ops::follow_moments(three, three, doubles({1, 2, 3}), 0.5, ctx), std::logic_error);
}

}  // namespace
}  // namespace switchyard::test
