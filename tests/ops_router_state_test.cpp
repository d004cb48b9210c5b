#include "ops/router_state.h"

#include <gtest/gtest.h>

#include <cmath>

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
    ops::balance_bias(bias, doubles({0, 8, 3, 4}), 0.25, ctx);  // mean 3.75
    EXPECT_EQ(values(bias), (Numbers{0.25, 0.75, -0.75, 0.25}));
    ops::balance_bias(bias, doubles({5, 5, 5, 5}), 0.25, ctx);  // balanced: sign(0) = 0
    EXPECT_EQ(values(bias), (Numbers{0.25, 0.75, -0.75, 0.25}));
    ops::balance_bias(bias, doubles({2, 4, 6, 4}), 0.25, ctx);  // mean 4
    EXPECT_EQ(values(bias), (Numbers{0.5, 0.75, -1, 0.25}));
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
  EXPECT_THROW(ops::balance_bias(three, doubles({1, 2}), 0.1, ctx), std::logic_error);
  EXPECT_THROW(ops::balance_bias(three, three, 0.1, ctx), std::logic_error);
  EXPECT_THROW(ops::follow_quantiles(three, matrix, 0.5, 0.5, ctx), std::logic_error);
  EXPECT_THROW(ops::follow_quantile_bias(three, matrix, 0.5, 0.5, ctx), std::logic_error);
  EXPECT_THROW(ops::follow_means(matrix, matrix, doubles({1, 2, 3}), 0.5, ctx), std::logic_error);
  EXPECT_THROW(ops::follow_moments(three, three, doubles({1, 2, 3}), 0.5, ctx), std::logic_error);
}

}  // namespace
}  // namespace switchyard::test
