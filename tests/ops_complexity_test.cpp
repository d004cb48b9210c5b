// From complexities to numbers of experts, by hand.
#include "ops/complexity.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tensors.h"

namespace switchyard::ops {
namespace {

std::vector<double> counts(const std::vector<double>& complexities, double least, std::int64_t most) {
  Context ctx;
  const auto T = static_cast<std::int64_t>(complexities.size());
  const test::OwnedTensor c_T({T}, DType::f64), count_T({T}, DType::i32);
  test::fill(c_T, complexities);
  slot_count(count_T, c_T, least, most, ctx);
  return test::values(count_T);
}

TEST(SlotCount, IsRoundedBetweenTheEnds) {
  EXPECT_EQ(counts({0, 0.1, 0.2, 0.5, 0.9, 1}, 1, 4), (std::vector<double>{1, 1, 2, 3, 4, 4}));
  EXPECT_EQ(counts({std::nan("")}, 2, 4), (std::vector<double>{2}));
}

// From 1.6 to 4: 1.6, 2.08, 2.8, 4.
TEST(SlotCount, TheLeastMayLieBetweenTwoNumbers) {
  EXPECT_EQ(counts({0, 0.2, 0.5, 1}, 1.6, 4), (std::vector<double>{2, 2, 3, 4}));
}

// Over complexities that are spread evenly the mean is halfway: rounding to whole numbers adds nothing but at
// the ends, which are each half as wide as the others: 1 of 2.4 steps here, and their errors are 0.1 and 0
// experts.
TEST(SlotCount, TheMeanIsHalfwayBetweenTheEnds) {
  std::vector<double> even;
  for (int i = 0; i < 2400; ++i) even.push_back((i + 0.5) / 2400);
  double sum = 0;
  for (const double count : counts(even, 1.6, 4)) sum += count;
  // Exactly: 2 for c in [0, 0.375), 3 up to 0.7917, 4 beyond.
  EXPECT_NEAR(sum / 2400, 2 * 0.375 + 3 * (0.791667 - 0.375) + 4 * (1 - 0.791667), 1e-3);
  EXPECT_NEAR(sum / 2400, (1.6 + 4) / 2, 0.05);
}

TEST(KnownValues, WhatIsNotKnownHasTheMean) {
  Context ctx;
  const test::OwnedTensor raw_T({4}, DType::f64), known_T({4}, DType::i32);
  known_values(raw_T, known_T, test::doubles({3, 0, 7}), test::doubles({4.5}), test::ints({2, 1, -1, 0}), ctx);
  EXPECT_EQ(test::values(raw_T), (std::vector<double>{7, 4.5, 4.5, 3}));
  EXPECT_EQ(test::values(known_T), (std::vector<double>{2, -1, -1, 0}));
}

TEST(AddByToken, AddsValuesAndCountsWithoutPadding) {
  Context ctx;
  const test::OwnedTensor sum_6 = test::doubles({1, 0, 0, 5, 0, 0});
  add_by_token(sum_6, test::doubles({1, 2, 100, 4}), test::ints({2, 0, -1, 2}), 10, ctx);
  EXPECT_EQ(test::values(sum_6), (std::vector<double>{21, 0, 50, 6, 0, 2}));
}

}  // namespace
}  // namespace switchyard::ops
