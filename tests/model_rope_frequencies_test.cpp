#include "model/rope_frequencies.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "tensors.h"

namespace switchyard::model {
namespace {

using config::RopeType;
using Numbers = std::vector<double>;

// Powers and logarithms in double, a few units in the last place each.
::testing::AssertionResult near(const Numbers& actual, const Numbers& expected) {
  return test::all_near(actual, expected, 1e-14, 0);
}

config::Rope yarn(double theta, double factor, std::int64_t original) {
  return {
      .theta = theta, .type = RopeType::yarn, .factor = factor, .original_max_position_embeddings = original};
}

TEST(RopeFrequencies, UnscaledFallFromOneByPowersOfTheta) {
  EXPECT_TRUE(near(rope_frequencies({.theta = 1e4}, 8), {1, 0.1, 0.01, 0.001}));
  EXPECT_TRUE(near(rope_frequencies({.theta = 1e6}, 2), {1}));
}

TEST(RopeFrequencies, LinearDividesAll) {
  EXPECT_TRUE(near(rope_frequencies({.theta = 1e4, .type = RopeType::linear, .factor = 4}, 8),
                   {0.25, 0.025, 0.0025, 0.00025}));
}

// d(r) = 8 ln(4096 / (2 pi r)) / (2 ln 10^4): d(32) = 1.309, d(1) = 2.814, so the ramp runs from pair 1 to
// pair 3.
TEST(RopeFrequencies, YarnByHand) {
  EXPECT_TRUE(near(rope_frequencies(yarn(1e4, 4, 4096), 8), {1, 0.1, (0.01 + 0.0025) / 2, 0.00025}));
}

TEST(RopeFrequencies, YarnWithoutTruncationRampsBetweenTheBordersAsTheyAre) {
  config::Rope rope = yarn(1e4, 4, 4096);
  rope.truncate = false;
  const auto border = [](double turns) {
    return 8 * std::log(4096 / (2 * std::numbers::pi * turns)) / (2 * std::log(1e4));
  };
  const double ramp = (2 - border(32)) / (border(1) - border(32));
  EXPECT_NEAR(ramp, 0.459, 1e-3);
  const Numbers actual = rope_frequencies(rope, 8);
  EXPECT_TRUE(test::all_near(actual, {1, 0.1, 0.01 * (1 - ramp) + 0.0025 * ramp, 0.00025}, 1e-13, 0));
}

// d(32) is below 0 and counts as 0; d(1) = 1.008.
TEST(RopeFrequencies, YarnOfAShortContextRampsFromTheFirstPair) {
  EXPECT_TRUE(near(rope_frequencies(yarn(1e4, 2, 64), 8), {1, (0.1 + 0.05) / 2, 0.005, 0.0005}));
}

// d(1000) = 2.4, d(1) = 8.4, which the size of the head less one limits to 7, although there are but 4 pairs.
TEST(RopeFrequencies, YarnsUpperBorderIsTheHeadSizeLessOne) {
  config::Rope rope = yarn(100, 4, 100000);
  rope.beta_fast = 1000;
  const Numbers plain = rope_frequencies({.theta = 100}, 8);
  EXPECT_TRUE(near(rope_frequencies(rope, 8), {plain[0], plain[1], plain[2], plain[3] * (0.8 + 0.2 / 4)}));
}

// Both borders are pair 1: a step of a thousandth instead of a division by nothing.
TEST(RopeFrequencies, YarnWithEqualBordersIsAStep) {
  config::Rope rope = yarn(1e4, 4, 4096);
  rope.beta_fast = rope.beta_slow = 65.2;  // d = 1.0
  rope.truncate = false;
  const Numbers actual = rope_frequencies(rope, 8);
  EXPECT_TRUE(near({actual[0], actual[2], actual[3]}, {1, 0.0025, 0.00025}));
}

// By the formulas of docs/transformers-notes.md, over a range of sizes.
TEST(RopeFrequencies, YarnFollowsTheFormulas) {
  for (const std::int64_t dim : {2, 8, 64, 128})
    for (const double theta : {1e4, 1e6})
      for (const double factor : {1.0, 4.0, 40.0})
        for (const std::int64_t original : {16, 4096, 131072}) {
          const auto d = [&](double r) {
            return static_cast<double>(dim) *
                   std::log(static_cast<double>(original) / (2 * std::numbers::pi * r)) / (2 * std::log(theta));
          };
          const double low = std::max(std::floor(d(32)), 0.0);
          double high = std::min(std::ceil(d(1)), static_cast<double>(dim - 1));
          if (low == high) high += 0.001;
          Numbers expected;
          for (std::int64_t i = 0; i < dim / 2; ++i) {
            const double ramp = std::min(std::max((static_cast<double>(i) - low) / (high - low), 0.0), 1.0);
            const double inv = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(dim));
            expected.push_back(ramp * inv / factor + (1 - ramp) * inv);
          }
          EXPECT_TRUE(near(rope_frequencies(yarn(theta, factor, original), dim), expected))
              << dim << " " << theta << " " << factor << " " << original;
        }
}

}  // namespace
}  // namespace switchyard::model
