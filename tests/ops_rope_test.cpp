#include "ops/rope.h"

#include <gtest/gtest.h>

#include <cmath>

#include "gradient_check.h"
#include "tensors.h"
#include "threads.h"

namespace switchyard::test {
namespace {

struct Table {
  OwnedTensor cos, sin;

  Table(std::int64_t positions, std::int64_t pairs, DType dtype, Context& ctx, double theta = 10000.0)
      : cos({positions, pairs}, dtype), sin({positions, pairs}, dtype) {
    ops::rope_table(cos, sin, theta, ctx);
  }
};

TEST(Rope, TableOfTwoPairsByHand) {
  Context ctx;
  const Table table(3, 2, DType::f64, ctx, 100.0);  // frequencies 1 and 100^(-2/4) = 0.1
  EXPECT_TRUE(all_near(values(table.cos), {1, 1, std::cos(1.0), std::cos(0.1), std::cos(2.0), std::cos(0.2)},
                       1e-15, 0));
  EXPECT_TRUE(all_near(values(table.sin), {0, 0, std::sin(1.0), std::sin(0.1), std::sin(2.0), std::sin(0.2)},
                       1e-15, 0));
}

// Angles of thousands of radians keep their fraction in float32, since they are made in double.
TEST(Rope, TableIsExactAtLargePositions) {
  Context ctx;
  const Table table(40001, 1, DType::f32, ctx);
  EXPECT_EQ(table.cos[40000], static_cast<double>(static_cast<float>(std::cos(40000.0))));
  EXPECT_EQ(table.sin[40000], static_cast<double>(static_cast<float>(std::sin(40000.0))));
}

TEST(Rope, PairsAnElementWithTheOneHalfAHeadOn) {
  Context ctx;
  const Table table(2, 2, DType::f64, ctx, 100.0);
  OwnedTensor x({2, 4}, DType::f64);
  fill(x, {1, 2, 3, 4, 1, 2, 3, 4});
  ops::rope_forward(x, table.cos, table.sin, 2, ctx);
  const double c = std::cos(1.0), s = std::sin(1.0), c1 = std::cos(0.1), s1 = std::sin(0.1);
  EXPECT_TRUE(
      all_near(values(x), {1, 2, 3, 4, c - 3 * s, 2 * c1 - 4 * s1, 3 * c + s, 4 * c1 + 2 * s1}, 1e-14, 0));
}

TEST(Rope, PositionStartsAnewWithEachSequence) {
  Context ctx;
  const Table table(9, 3, DType::f32, ctx);  // longer than the sequences
  const OwnedTensor x({10, 12}, DType::f32);
  for (std::int64_t i = 0; i < x.numel(); ++i) set(x, i, std::sin(static_cast<double>(i % 12)));
  ops::rope_forward(x, table.cos, table.sin, 5, ctx);
  EXPECT_TRUE(same_bits(x.view().slice(0, 5), x.view().slice(5, 5)));
  EXPECT_FALSE(same_bits(x.view().slice(0, 4), x.view().slice(1, 4)));
}

struct Sizes {
  std::int64_t tokens, seq_len, heads, pairs;
};
const Sizes kSizes[] = {{1, 1, 1, 1}, {6, 3, 2, 3}, {17, 17, 3, 17}, {34, 17, 1, 33}, {6, 3, 2, 64}};

// x is a column range of a wider matrix, as q and k are of a fused projection.
TEST(Rope, GradientMatchesFiniteDifferences) {
  for (const Sizes& s : kSizes) {
    Context ctx;
    const Table table(s.seq_len, s.pairs, DType::f64, ctx);
    const std::int64_t width = s.heads * 2 * s.pairs;
    const OwnedTensor x = normal_strided(s.tokens, width, DType::f64, "x");
    const OwnedTensor dout = normal_strided(s.tokens, width, DType::f64, "dout", 1.0, 2);
    const OwnedTensor dx =
        normal_strided(s.tokens, width, DType::f64, "dout", 1.0, 3);  // dout, turned in place
    ops::rope_backward(dx, table.cos, table.sin, s.seq_len, ctx);
    EXPECT_TRUE(dx.margins_untouched());
    const auto loss = [&] {
      const OwnedTensor out = OwnedTensor::strided(s.tokens, width, DType::f64, 1);
      for (std::int64_t i = 0; i < x.numel(); ++i) set(out, i, x[i]);
      ops::rope_forward(out, table.cos, table.sin, s.seq_len, ctx);
      EXPECT_TRUE(out.margins_untouched());
      return dot(dout, out);
    };
    // Up to 2,000 terms of order one in the loss: its rounding, 3e-13, over the step of 1e-5.
    EXPECT_TRUE(gradient_matches(x, dx, loss, {.absolute = 1e-7, .max_elements = 100})) << s.pairs << " pairs";
  }
}

TEST(Rope, FloatFollowsDouble) {
  for (const Sizes& s : kSizes) {
    Context ctx;
    std::vector<std::vector<double>> results;
    for (DType dtype : {DType::f32, DType::f64}) {
      const Table table(s.seq_len, s.pairs, dtype, ctx);
      const OwnedTensor x = normal_strided(s.tokens, s.heads * 2 * s.pairs, dtype, "x");
      ops::rope_forward(x, table.cos, table.sin, s.seq_len, ctx);
      results.push_back(values(x));
    }
    // Five roundings of 6e-8 on numbers of up to about 4.
    EXPECT_TRUE(all_near(results[0], results[1], 0, 1.2e-6)) << s.pairs << " pairs";
  }
}

TEST(Rope, SameBitsOnAnyThreadCount) {
  Context ctx;
  const Table table(67, 33, DType::f32, ctx);
  expect_same_bits_on_any_thread_count([&] {
    OwnedTensor x = normal({201, 198}, DType::f32, "x");
    ops::rope_forward(x, table.cos, table.sin, 67, ctx);
    return x;
  });
  expect_same_bits_on_any_thread_count([&] {
    Table large(1001, 33, DType::f32, ctx);
    return std::move(large.sin);
  });
}

TEST(Rope, RefusesOtherShapesAndDtypes) {
  Context ctx;
  const OwnedTensor x({4, 8}, DType::f32), odd({4, 6}, DType::f32), x64({4, 8}, DType::f64);
  const OwnedTensor cos({4, 2}, DType::f32), sin({4, 2}, DType::f32), short_sin({3, 2}, DType::f32);
  EXPECT_THROW(ops::rope_table(cos, short_sin, 1e4, ctx), std::logic_error);
  EXPECT_THROW(ops::rope_forward(odd, cos, sin, 4, ctx), std::logic_error);  // a head and a half
  EXPECT_THROW(ops::rope_forward(x64, cos, sin, 4, ctx), std::logic_error);
  EXPECT_THROW(ops::rope_forward(x, cos, sin, 5, ctx), std::logic_error);  // beyond the table
  EXPECT_THROW(ops::rope_backward(x, cos, sin, 0, ctx), std::logic_error);
}

}  // namespace
}  // namespace switchyard::test
