#include "ops/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "gradient_check.h"
#include "tensors.h"
#include "threads.h"

namespace switchyard::test {
namespace {

struct Table {
  OwnedTensor cos, sin;

  Table(std::int64_t positions, std::int64_t pairs, DType dtype, Context& ctx, double theta = 10000.0,
        double scale = 1.0)
      : cos({positions, pairs}, dtype), sin({positions, pairs}, dtype) {
    const OwnedTensor frequency({pairs}, DType::f64);
    for (std::int64_t i = 0; i < pairs; ++i)
      set(frequency, i, std::pow(theta, -static_cast<double>(i) / static_cast<double>(pairs)));
    ops::rope_table(cos, sin, frequency, scale, ctx);
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

TEST(Rope, TableHasTheFrequenciesAndTheScaleThatItIsGiven) {
  Context ctx;
  const OwnedTensor cos({2, 2}, DType::f64), sin({2, 2}, DType::f64), frequency({2}, DType::f64);
  fill(frequency, {0.5, 2});
  ops::rope_table(cos, sin, frequency, 3.0, ctx);
  EXPECT_TRUE(all_near(values(cos), {3, 3, 3 * std::cos(0.5), 3 * std::cos(2.0)}, 1e-15, 0));
  EXPECT_TRUE(all_near(values(sin), {0, 0, 3 * std::sin(0.5), 3 * std::sin(2.0)}, 1e-15, 0));
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
  ops::rope_forward(x, table.cos, table.sin, 2, {4}, ctx);
  const double c = std::cos(1.0), s = std::sin(1.0), c1 = std::cos(0.1), s1 = std::sin(0.1);
  EXPECT_TRUE(
      all_near(values(x), {1, 2, 3, 4, c - 3 * s, 2 * c1 - 4 * s1, 3 * c + s, 4 * c1 + 2 * s1}, 1e-14, 0));
}

TEST(Rope, PairsNeighbours) {
  Context ctx;
  const Table table(2, 2, DType::f64, ctx, 100.0);
  OwnedTensor x({2, 4}, DType::f64);
  fill(x, {1, 2, 3, 4, 1, 2, 3, 4});
  ops::rope_forward(x, table.cos, table.sin, 2, {4, ops::RopePairs::neighbours}, ctx);
  const double c = std::cos(1.0), s = std::sin(1.0), c1 = std::cos(0.1), s1 = std::sin(0.1);
  EXPECT_TRUE(
      all_near(values(x), {1, 2, 3, 4, c - 2 * s, 2 * c + s, 3 * c1 - 4 * s1, 4 * c1 + 3 * s1}, 1e-14, 0));
}

// Two heads of three: the first element of each is left alone.
TEST(Rope, TurnsTheLastElementsOfEachHead) {
  Context ctx;
  const double c = std::cos(1.0), s = std::sin(1.0);
  for (const ops::RopePairs pairs :
       {ops::RopePairs::halves, ops::RopePairs::neighbours}) {  // the same of a single pair
    const Table table(2, 1, DType::f64, ctx);
    OwnedTensor x({2, 6}, DType::f64);
    fill(x, {1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6});
    ops::rope_forward(x, table.cos, table.sin, 2, {3, pairs}, ctx);
    EXPECT_TRUE(all_near(values(x),
                         {1, 2, 3, 4, 5, 6,  //
                          1, 2 * c - 3 * s, 3 * c + 2 * s, 4, 5 * c - 6 * s, 6 * c + 5 * s},
                         1e-14, 0));
    EXPECT_EQ(x[6], 1);
    EXPECT_EQ(x[9], 4);
  }
}

// In another order of a head's elements, the two layouts are one.
TEST(Rope, NeighboursAreHalvesReordered) {
  Context ctx;
  constexpr std::int64_t kPairs = 9, kTokens = 7, kNope = 5, kHead = kNope + 2 * kPairs;
  const Table table(kTokens, kPairs, DType::f32, ctx);
  const OwnedTensor neighbours = normal({kTokens, kHead}, DType::f32, "x"),
                    halves({kTokens, kHead}, DType::f32);
  const auto reordered = [&](const Tensor& from) {
    OwnedTensor to({kTokens, kHead}, DType::f32);
    for (std::int64_t t = 0; t < kTokens; ++t) {
      for (std::int64_t n = 0; n < kNope; ++n) set(to, t * kHead + n, get(from, t * kHead + n));
      for (std::int64_t i = 0; i < kPairs; ++i)
        for (const std::int64_t half : {0, 1})
          set(to, t * kHead + kNope + half * kPairs + i, get(from, t * kHead + kNope + 2 * i + half));
    }
    return to;
  };
  const OwnedTensor start = reordered(neighbours);
  for (std::int64_t i = 0; i < start.numel(); ++i) set(halves, i, start[i]);
  ops::rope_forward(halves, table.cos, table.sin, kTokens, {kHead, ops::RopePairs::halves}, ctx);
  ops::rope_forward(neighbours, table.cos, table.sin, kTokens, {kHead, ops::RopePairs::neighbours}, ctx);
  // The same two products and one sum an element; one of the loops may fuse them and round once less.
  EXPECT_TRUE(all_near(values(reordered(neighbours)), values(halves), 0, 6e-7));
}

TEST(Rope, PositionStartsAnewWithEachSequence) {
  Context ctx;
  const Table table(9, 3, DType::f32, ctx);  // longer than the sequences
  const OwnedTensor x({10, 12}, DType::f32);
  for (std::int64_t i = 0; i < x.numel(); ++i) set(x, i, std::sin(static_cast<double>(i % 12)));
  ops::rope_forward(x, table.cos, table.sin, 5, {6}, ctx);
  EXPECT_TRUE(same_bits(x.view().slice(0, 5), x.view().slice(5, 5)));
  EXPECT_FALSE(same_bits(x.view().slice(0, 4), x.view().slice(1, 4)));
}

struct Sizes {
  std::int64_t tokens, seq_len, heads, pairs;
  std::int64_t nope = 0;  // elements of a head that are not rotated
  ops::RopePairs kind = ops::RopePairs::halves;
  std::int64_t head_dim() const { return nope + 2 * pairs; }
  std::int64_t width() const { return heads * head_dim(); }
  ops::RopeLayout layout() const { return {head_dim(), kind}; }
};
const Sizes kSizes[] = {{1, 1, 1, 1},
                        {6, 3, 2, 3},
                        {17, 17, 3, 17},
                        {34, 17, 1, 33},
                        {6, 3, 2, 64},
                        {6, 3, 2, 3, 5},
                        {1, 1, 1, 1, 0, ops::RopePairs::neighbours},
                        {17, 17, 3, 17, 0, ops::RopePairs::neighbours},
                        {34, 17, 2, 33, 1, ops::RopePairs::neighbours},
                        {6, 3, 2, 32, 128, ops::RopePairs::neighbours}};

std::string describe(const Sizes& s) {
  return std::to_string(s.pairs) + " pairs of " + std::to_string(s.head_dim()) +
         (s.kind == ops::RopePairs::halves ? ", halves" : ", neighbours");
}

// x is a column range of a wider matrix, as q and k are of a fused projection.
TEST(Rope, GradientMatchesFiniteDifferences) {
  for (const Sizes& s : kSizes) {
    Context ctx;
    const Table table(s.seq_len, s.pairs, DType::f64, ctx, 10000.0,
                      1.25);  // not the inverse, but the transpose
    const std::int64_t width = s.width();
    const OwnedTensor x = normal_strided(s.tokens, width, DType::f64, "x");
    const OwnedTensor dout = normal_strided(s.tokens, width, DType::f64, "dout", 1.0, 2);
    const OwnedTensor dx =
        normal_strided(s.tokens, width, DType::f64, "dout", 1.0, 3);  // dout, turned in place
    ops::rope_backward(dx, table.cos, table.sin, s.seq_len, s.layout(), ctx);
    EXPECT_TRUE(dx.margins_untouched());
    const auto loss = [&] {
      const OwnedTensor out = OwnedTensor::strided(s.tokens, width, DType::f64, 1);
      for (std::int64_t i = 0; i < x.numel(); ++i) set(out, i, x[i]);
      ops::rope_forward(out, table.cos, table.sin, s.seq_len, s.layout(), ctx);
      EXPECT_TRUE(out.margins_untouched());
      return dot(dout, out);
    };
    // Up to 2,000 terms of order one in the loss: its rounding, 3e-13, over the step of 1e-5.
    EXPECT_TRUE(gradient_matches(x, dx, loss, {.absolute = 1e-7, .max_elements = 100})) << describe(s);
  }
}

TEST(Rope, FloatFollowsDouble) {
  for (const Sizes& s : kSizes) {
    Context ctx;
    std::vector<std::vector<double>> results;
    for (DType dtype : {DType::f32, DType::f64}) {
      const Table table(s.seq_len, s.pairs, dtype, ctx);
      const OwnedTensor x = normal_strided(s.tokens, s.width(), dtype, "x");
      ops::rope_forward(x, table.cos, table.sin, s.seq_len, s.layout(), ctx);
      results.push_back(values(x));
    }
    // Five roundings of 6e-8 on numbers of up to about 4.
    EXPECT_TRUE(all_near(results[0], results[1], 0, 1.2e-6)) << describe(s);
  }
}

TEST(Rope, SameBitsOnAnyThreadCount) {
  Context ctx;
  const Table table(67, 33, DType::f32, ctx);
  for (const ops::RopePairs pairs : {ops::RopePairs::halves, ops::RopePairs::neighbours}) {
    expect_same_bits_on_any_thread_count([&] {
      OwnedTensor x = normal({201, 3 * 70}, DType::f32, "x");
      ops::rope_forward(x, table.cos, table.sin, 67, {70, pairs}, ctx);
      return x;
    });
  }
  expect_same_bits_on_any_thread_count([&] {
    Table large(1001, 33, DType::f32, ctx);
    return std::move(large.sin);
  });
}

TEST(Rope, RefusesOtherShapesAndDtypes) {
  Context ctx;
  const OwnedTensor x({4, 8}, DType::f32), odd({4, 6}, DType::f32), x64({4, 8}, DType::f64);
  const OwnedTensor cos({4, 2}, DType::f32), sin({4, 2}, DType::f32), short_sin({3, 2}, DType::f32);
  const OwnedTensor frequency = normal({2}, DType::f64, "f"), one({1}, DType::f64), f32({2}, DType::f32);
  ops::rope_table(cos, sin, frequency, 1, ctx);
  EXPECT_THROW(ops::rope_table(cos, short_sin, frequency, 1, ctx), std::logic_error);
  EXPECT_THROW(ops::rope_table(cos, sin, one, 1, ctx), std::logic_error);
  EXPECT_THROW(ops::rope_table(cos, sin, f32, 1, ctx), std::logic_error);
  EXPECT_THROW(ops::rope_forward(odd, cos, sin, 4, {4}, ctx), std::logic_error);  // a head and a half
  EXPECT_THROW(ops::rope_forward(x, cos, sin, 4, {2}, ctx), std::logic_error);    // two pairs in a head of two
  EXPECT_THROW(ops::rope_forward(x64, cos, sin, 4, {4}, ctx), std::logic_error);
  EXPECT_THROW(ops::rope_forward(x, cos, sin, 5, {4}, ctx), std::logic_error);  // beyond the table
  EXPECT_THROW(ops::rope_backward(x, cos, sin, 0, {4}, ctx), std::logic_error);
}

}  // namespace
}  // namespace switchyard::test
