// Which steps are left out, by numbers made up for it.
#include "train/spike.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "temp_dir.h"

namespace switchyard::train {
namespace {

using checkpoint::recent_loss;
using checkpoint::SpikeHistory;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// `n` steps whose losses go up and down by `swing` about `level`, with norms of 1.
SpikeHistory history_of(std::size_t n, double level, double swing) {
  SpikeHistory history;
  for (std::size_t i = 0; i < n; ++i) learned({}, history, level + (i % 2 == 0 ? swing : -swing), 1.0);
  return history;
}

TEST(Spike, ALossManyDeviationsAboveTheMedianIsOne) {
  const SpikeHistory history = history_of(40, 3.0, 0.1);  // a deviation of 0.1
  EXPECT_EQ(spike_reason({}, history, 3.55, 1), "");
  EXPECT_CONTAINS(spike_reason({}, history, 3.65, 1), "the loss 3.65 is 6.5 deviations above the median 3");
  EXPECT_EQ(spike_reason({.deviations = 7}, history, 3.65, 1), "");
  EXPECT_EQ(spike_reason({.deviations = 0}, history, 1e6, 1), "");
  EXPECT_EQ(spike_reason({}, history, 0.1, 1), "");  // far below is no harm
}

TEST(Spike, LossesThatHardlyVaryLeaveRoomForOneThatDoes) {
  const SpikeHistory history = history_of(40, 3.0, 0.0);
  EXPECT_EQ(spike_reason({}, history, 3.35, 1), "");  // 6 times 2 percent are 0.36
  EXPECT_NE(spike_reason({}, history, 3.37, 1), "");
}

TEST(Spike, ABatchOfARarerDomainIsNone) {
  SpikeHistory history;
  for (int i = 0; i < 100; ++i) learned({}, history, i % 5 == 0 ? 3.0 : 1.0, 1.0);
  EXPECT_EQ(spike_reason({}, history, 3.1, 1), "");
}

TEST(Spike, AYoungRunIsComparedWithItsLargestLoss) {
  SpikeHistory history;
  EXPECT_EQ(spike_reason({}, history, 1e9, 1e9), "");  // nothing to compare with
  learned({}, history, 5.5, 1.0);
  EXPECT_EQ(spike_reason({}, history, 10.9, 1e9), "");
  EXPECT_CONTAINS(spike_reason({}, history, 11.1, 1), "more than twice the largest so far, 5.5");
}

TEST(Spike, AGradientManyTimesAsLongAsTheMedianIsOne) {
  const SpikeHistory history = history_of(20, 3.0, 0.1);
  EXPECT_EQ(spike_reason({}, history, 3, 19.9), "");
  EXPECT_CONTAINS(spike_reason({}, history, 3, 20.1), "20.1 times the median 1");
  EXPECT_EQ(spike_reason({.grad_norm_factor = 0}, history, 3, 1e9), "");
  EXPECT_EQ(spike_reason({}, history_of(19, 3.0, 0.1), 3, 1e9), "");
}

TEST(Spike, WhatIsNotFiniteIsOne) {
  for (const SpikeHistory& history : {SpikeHistory{}, history_of(30, 3, 0.1)}) {
    EXPECT_EQ(spike_reason({}, history, kNaN, 1), "the loss is not finite");
    EXPECT_EQ(spike_reason({}, history, 3, std::numeric_limits<double>::infinity()),
              "the gradient is not finite");
  }
}

TEST(Spike, TheHistoryHoldsTheNewestThatWereLearnedFrom) {
  const config::Spike options{.window = 20};
  SpikeHistory history;
  for (int i = 0; i < 30; ++i) learned(options, history, i, 2 * i);
  left_out(history);
  left_out(history);
  EXPECT_EQ(history.losses.size(), 20u);
  EXPECT_EQ(history.losses.front(), 10);
  EXPECT_EQ(history.grad_norms.back(), 58);
  EXPECT_EQ(history.skipped, 2);
  EXPECT_EQ(history.skipped_in_row, 2);
  learned(options, history, 1, 1);
  EXPECT_EQ(history.skipped, 2);
  EXPECT_EQ(history.skipped_in_row, 0);
}

TEST(Spike, WhereARunStandsIsTheMedianOfItsNewestLosses) {
  EXPECT_TRUE(std::isnan(recent_loss({})));
  SpikeHistory history = history_of(50, 9.0, 0.0);
  for (int i = 0; i < 16; ++i) learned({}, history, i == 3 ? 1e9 : 2.0, 1);
  EXPECT_EQ(recent_loss(history), 2.0);
}

}  // namespace
}  // namespace switchyard::train
