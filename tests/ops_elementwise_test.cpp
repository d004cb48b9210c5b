#include "ops/elementwise.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "tensors.h"
#include "threads.h"

namespace switchyard::test {
namespace {

// Around the sizes at which work is cut into pieces and given to threads, and odd ones.
const std::int64_t kCounts[] = {1, 3, 17, 129, 8191, 8192, 8193, 16385, 20001};

TEST(Elementwise, FillZeroSetsAllAndNothingElse) {
  Context ctx;
  for (DType dtype : {DType::f32, DType::f64, DType::i32}) {
    for (std::int64_t count : kCounts) {
      const OwnedTensor flat({count}, dtype), strided = OwnedTensor::strided(3, count, dtype);
      ops::fill_zero(flat, ctx);
      ops::fill_zero(strided, ctx);
      for (std::int64_t i = 0; i < flat.numel(); ++i) ASSERT_EQ(flat[i], 0.0);
      for (std::int64_t i = 0; i < strided.numel(); ++i) ASSERT_EQ(strided[i], 0.0);
      EXPECT_TRUE(strided.margins_untouched());
    }
  }
  ops::fill_zero(OwnedTensor({0, 4}, DType::f32), ctx);  // nothing to do
}

// From 64 MiB on zeros go past the caches, by 16 bytes at a time where they are aligned.
TEST(Elementwise, FillZeroOfMoreThanCachesHold) {
  Context ctx;
  constexpr std::int64_t kCount = (std::int64_t{16} << 20) + 8193;
  const OwnedTensor all({kCount + 8}, DType::f32);
  auto* const values = all.view().as<float>();
  for (const std::int64_t first : {0, 1, 4, 7}) {
    std::fill_n(values, kCount + 8, 1.0f);
    ops::fill_zero(all.view().slice(first, kCount), ctx);
    EXPECT_EQ(std::count(values, values + kCount + 8, 0.0f), kCount) << first;
    EXPECT_EQ(std::count(values + first, values + first + kCount, 0.0f), kCount) << first;
  }
}

TEST(Elementwise, AccumulateAddsAMultiple) {
  Context ctx;
  for (const std::int64_t count : kCounts) {
    const OwnedTensor sum = normal({count}, DType::f64, "sum"), value = normal({count}, DType::f64, "value");
    std::vector<double> expected = values(sum);
    for (std::int64_t i = 0; i < count; ++i) expected[static_cast<std::size_t>(i)] += 0.3 * value[i];
    ops::accumulate(sum, value, 0.3, ctx);
    EXPECT_TRUE(all_near(values(sum), expected, 1e-15, 1e-15)) << count;  // with or without a fused product
  }
  ops::accumulate(OwnedTensor({0}, DType::f64), OwnedTensor({0}, DType::f64), 1, ctx);  // nothing to do
  EXPECT_THROW(ops::accumulate(doubles({1}), doubles({1, 2}), 1, ctx), std::logic_error);
}

TEST(Elementwise, CopyMovesBitsBetweenStrides) {
  Context ctx;
  for (DType dtype : {DType::f32, DType::f64, DType::i32}) {
    for (std::int64_t count : kCounts) {
      const OwnedTensor in = normal_strided(3, count, dtype, "in", 1000.0);
      const OwnedTensor flat({3, count}, dtype), strided = OwnedTensor::strided(3, count, dtype, 2);
      ops::copy(flat, in, ctx);
      ops::copy(strided, flat, ctx);
      EXPECT_TRUE(same_bits(flat, in)) << count;
      EXPECT_TRUE(same_bits(strided, in)) << count;
      EXPECT_TRUE(strided.margins_untouched());
    }
  }
}

TEST(Elementwise, AddAlsoIntoAnInput) {
  Context ctx;
  for (DType dtype : {DType::f32, DType::f64}) {
    for (std::int64_t count : kCounts) {
      const OwnedTensor a = normal_strided(2, count, dtype, "a"), b = normal({2, count}, dtype, "b");
      const OwnedTensor out = OwnedTensor::strided(2, count, dtype, 1);
      std::vector<double> expected;
      for (std::int64_t i = 0; i < a.numel(); ++i) expected.push_back(a[i] + b[i]);
      // One rounding of the sum.
      const double relative = dtype == DType::f32 ? 6e-8 : 0;
      ops::add(out, a, b, ctx);
      EXPECT_TRUE(all_near(values(out), expected, relative, 0)) << count;
      EXPECT_TRUE(out.margins_untouched());
      ops::add(a, a, b, ctx);
      EXPECT_TRUE(same_bits(a, out)) << count;
    }
  }
}

TEST(Elementwise, SumOfSquaresByHand) {
  Context ctx;
  OwnedTensor in({2, 2}, DType::f32);
  fill(in, {1, -2, 3, 0.5});
  EXPECT_EQ(ops::sum_of_squares(in, ctx), 14.25);
  EXPECT_EQ(ops::sum_of_squares(OwnedTensor({0}, DType::f32), ctx), 0.0);
}

// Small integers: every partial sum is exact, so each element must be in it exactly once.
TEST(Elementwise, SumOfSquaresCountsEveryElementOnce) {
  Context ctx;
  ctx.scratch.set_poison(true);
  for (DType dtype : {DType::f32, DType::f64}) {
    for (std::int64_t count : kCounts) {
      const OwnedTensor in({count}, dtype);
      fill_int(in, "in", -9, 10);
      EXPECT_EQ(ops::sum_of_squares(in, ctx), dot(in, in)) << count;
    }
  }
}

TEST(Elementwise, SumOfSquaresIsMadeInDouble) {
  Context ctx;
  OwnedTensor in({4}, DType::f32);
  fill(in, {1e25, 1, 1, 1});                                    // its square is no float
  EXPECT_NEAR(ops::sum_of_squares(in, ctx) / 1e50, 1.0, 1e-6);  // 1e25 itself is rounded to a float
}

TEST(Elementwise, SumOfSquaresOfNonFiniteIsNonFinite) {
  Context ctx;
  const OwnedTensor in = normal({129}, DType::f32, "in");
  set(in, 77, std::numeric_limits<double>::quiet_NaN());
  EXPECT_TRUE(std::isnan(ops::sum_of_squares(in, ctx)));
}

// A block beyond 2^20 elements, one of none, and two that overlap.
TEST(Elementwise, SquaresOfBlocksAreThoseOfTheirElements) {
  Context ctx;
  const std::int64_t first = (1 << 20) + 3;
  const OwnedTensor in({first + 100}, DType::f32), block({4, 3}, DType::i32), square({4}, DType::f64);
  fill_int(in, "in", -9, 10);
  fill(block, {0, 0, 7, 1, 3, 100, 0, 5, 0, 0, 5, 70000});
  ops::squares_of_blocks(square, in, block, ctx);
  const auto expected = [&](std::int64_t begin, std::int64_t count) {
    const Tensor part = in.view().slice(begin, count);
    return dot(part, part);
  };
  EXPECT_EQ(values(square), (std::vector<double>{expected(0, 7), expected(first, 100), 0, expected(5, 70000)}));
}

TEST(Elementwise, SumAtAddsInTheOrderOfTheIndex) {
  Context ctx;
  const OwnedTensor value({4}, DType::f64), index({3}, DType::i32), sum({1}, DType::f64);
  fill(value, {1, 1e16, 7, -1e16});
  fill(index, {0, 1, 3});
  ops::sum_at(sum, value, index, ctx);
  EXPECT_EQ(sum[0], 0.0);  // the 1 is lost beside 1e16
  fill(index, {1, 3, 0});
  ops::sum_at(sum, value, index, ctx);
  EXPECT_EQ(sum[0], 1.0);
}

TEST(Elementwise, SameBitsOnAnyThreadCount) {
  Context ctx;
  const OwnedTensor a = normal({50001}, DType::f32, "a"), b = normal({50001}, DType::f32, "b");
  expect_same_bits_on_any_thread_count([&] {
    OwnedTensor sum({1}, DType::f64);
    set(sum, 0, ops::sum_of_squares(a, ctx));
    return sum;
  });
  expect_same_bits_on_any_thread_count([&] {
    OwnedTensor out({50001}, DType::f32);
    ops::add(out, a, b, ctx);
    return out;
  });
}

TEST(Elementwise, RefusesOtherShapesAndDtypes) {
  Context ctx;
  const OwnedTensor a({2, 3}, DType::f32), b({3, 2}, DType::f32), c({2, 3}, DType::f64);
  const OwnedTensor integers({2, 3}, DType::i32);
  EXPECT_THROW(ops::copy(a, b, ctx), std::logic_error);
  EXPECT_THROW(ops::copy(a, c, ctx), std::logic_error);
  EXPECT_THROW(ops::add(a, a, b, ctx), std::logic_error);
  EXPECT_THROW(ops::add(a, a, c, ctx), std::logic_error);
  EXPECT_THROW(ops::add(integers, integers, integers, ctx), std::logic_error);
  EXPECT_THROW(ops::sum_of_squares(OwnedTensor::strided(2, 3, DType::f32), ctx), std::logic_error);
}

}  // namespace
}  // namespace switchyard::test
