#include "train/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>

namespace switchyard::train {
namespace {

// The values below are short products of exact factors; what is left is the rounding of a few double
// operations.
constexpr double kRounding = 1e-15;

config::Train plan(config::Schedule schedule) {
  config::Train train;
  train.schedule = schedule;
  train.steps = 100;
  train.lr = 2.0;
  train.min_lr_ratio = 0.1;
  train.warmup_ratio = 0.1;
  train.decay_ratio = 0.2;
  return train;
}

TEST(Schedule, WarmUpIsLinearFromOneStepToTheFullRate) {
  for (const auto schedule : {config::Schedule::constant, config::Schedule::linear, config::Schedule::cosine,
                              config::Schedule::wsd}) {
    const auto train = plan(schedule);
    EXPECT_NEAR(learning_rate(train, 1), 0.2, kRounding);
    EXPECT_NEAR(learning_rate(train, 5), 1.0, kRounding);
    EXPECT_NEAR(learning_rate(train, 10), 2.0, kRounding);
  }
}

TEST(Schedule, ConstantStaysAfterWarmUp) {
  const auto train = plan(config::Schedule::constant);
  for (const int step : {11, 55, 100, 200}) EXPECT_EQ(learning_rate(train, step), 2.0);
}

TEST(Schedule, LinearFallsToTheMinimum) {
  const auto train = plan(config::Schedule::linear);
  EXPECT_NEAR(learning_rate(train, 55), 1.1, kRounding);  // halfway: (2 + 0.2) / 2
  EXPECT_NEAR(learning_rate(train, 100), 0.2, kRounding);
  EXPECT_NEAR(learning_rate(train, 1000), 0.2, kRounding);
}

TEST(Schedule, CosineFallsToTheMinimum) {
  const auto train = plan(config::Schedule::cosine);
  EXPECT_NEAR(learning_rate(train, 55), 1.1, kRounding);
  EXPECT_NEAR(learning_rate(train, 40), 0.2 + 1.8 * 0.75, kRounding);  // a third of the way: cos(pi/3) = 1/2
  EXPECT_NEAR(learning_rate(train, 100), 0.2, kRounding);
}

TEST(Schedule, WsdHoldsAndThenDecays) {
  const auto train = plan(config::Schedule::wsd);
  EXPECT_EQ(learning_rate(train, 11), 2.0);
  EXPECT_EQ(learning_rate(train, 80), 2.0);
  EXPECT_LT(learning_rate(train, 81), 2.0);
  EXPECT_NEAR(learning_rate(train, 90), 1.1, kRounding);
  EXPECT_NEAR(learning_rate(train, 100), 0.2, kRounding);
}

TEST(Schedule, WsdWhoseDecayWouldBeginInTheWarmUpDecaysAfterIt) {
  auto train = plan(config::Schedule::wsd);
  train.warmup_ratio = 0.5;
  train.decay_ratio = 0.9;
  EXPECT_EQ(learning_rate(train, 50), 2.0);
  EXPECT_NEAR(learning_rate(train, 75), 1.1, kRounding);
}

TEST(Schedule, EdgesOfTheRatios) {
  auto train = plan(config::Schedule::cosine);
  train.warmup_ratio = 0.0;  // step 1 is one hundredth of the way down
  EXPECT_NEAR(learning_rate(train, 1), 0.2 + 0.9 * (1.0 + std::cos(std::acos(-1.0) / 100)), kRounding);
  train.warmup_ratio = 1.0;
  EXPECT_NEAR(learning_rate(train, 100), 2.0, kRounding);
  train = plan(config::Schedule::wsd);
  train.decay_ratio = 0.0;
  EXPECT_EQ(learning_rate(train, 100), 2.0);
  train.steps = 1;
  train.warmup_ratio = 0.02;
  EXPECT_TRUE(std::isfinite(learning_rate(train, 1)));
  EXPECT_THROW(learning_rate(train, 0), std::logic_error);
}

}  // namespace
}  // namespace switchyard::train
