// Products in E4M3 on the CPU, the reference of the device's (cuda_linear_test.cpp).
#include "ops/cpu/e4m3.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <utility>
#include <vector>

#include "ops/linear.h"
#include "poisoned_context.h"
#include "rounding_bound.h"
#include "tensors.h"

namespace switchyard::test {
namespace {

using ops::Write;
using ops::cpu::rounded_to_e4m3;

// All E4M3 from 0 to 448, in the order of their bits: seven subnormal steps of 2^-9, then eight steps an
// exponent.
std::vector<float> all_e4m3() {
  std::vector<float> all;
  for (int bits = 0; bits < 0x7f; ++bits) {
    const int exponent = bits / 8, mantissa = bits % 8;
    all.push_back(exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                : std::ldexp(1.0f + static_cast<float>(mantissa) / 8, exponent - 7));
  }
  return all;
}

TEST(E4m3, RoundsToTheNearestAndTiesToEven) {
  const std::vector<float> all = all_e4m3();
  ASSERT_EQ(all.back(), 448);
  for (const float sign : {1.0f, -1.0f}) {
    for (std::size_t i = 0; i < all.size(); ++i) {
      EXPECT_EQ(rounded_to_e4m3(sign * all[i]), sign * all[i]);
      EXPECT_EQ(std::signbit(rounded_to_e4m3(sign * all[i])), sign < 0);
      if (i + 1 == all.size()) break;
      const float middle = (all[i] + all[i + 1]) / 2, even = i % 2 == 0 ? all[i] : all[i + 1];
      EXPECT_EQ(rounded_to_e4m3(sign * middle), sign * even) << middle;
      EXPECT_EQ(rounded_to_e4m3(sign * std::nextafter(middle, 0.0f)), sign * all[i]) << middle;
      EXPECT_EQ(rounded_to_e4m3(sign * std::nextafter(middle, 1e9f)), sign * all[i + 1]) << middle;
    }
    for (const float beyond : {449.0f, 464.0f, 1e30f, std::numeric_limits<float>::infinity()})
      EXPECT_EQ(rounded_to_e4m3(sign * beyond), sign * 448);
    EXPECT_EQ(rounded_to_e4m3(sign * std::numeric_limits<float>::denorm_min()), 0);
  }
  EXPECT_TRUE(std::isnan(rounded_to_e4m3(std::numeric_limits<float>::quiet_NaN())));
}

TEST(E4m3, AScaleBringsTheLargestValueToTheLargestNumber) {
  EXPECT_EQ(ops::cpu::E4m3Scale(0).scale, 1);
  EXPECT_EQ(ops::cpu::E4m3Scale(0).inverse, 1);
  for (const float largest : {448.0f, 1.0f, 3.0f, 1e-20f, 1e30f}) {
    const ops::cpu::E4m3Scale scale(largest);
    EXPECT_EQ(rounded_to_e4m3(largest * scale.inverse), 448) << largest;
    EXPECT_NEAR(448.0 * scale.scale, largest, 0x1p-23 * largest);  // one rounding, of the quotient
  }
  const ops::cpu::E4m3Scale tiny(std::numeric_limits<float>::denorm_min());
  EXPECT_TRUE(std::isfinite(tiny.inverse));
  EXPECT_GT(tiny.scale, 0);
}

// Whether each value of `rounded` is off by no more than half a step of the format in a tile whose largest
// value is the given one: 2^-4 of itself, 2^-10 of a scale among subnormals, and a rounding of the scale and
// its inverse.
::testing::AssertionResult is_rounded(double rounded, double value, double largest) {
  const double allowed =
      std::max(0x1p-4 * std::abs(value), 0x1p-10 * largest / 448) + 0x1p-22 * std::abs(value);
  if (std::abs(rounded - value) <= allowed) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << value << " became " << rounded << ", may be off by " << allowed;
}

// Tiles whose sizes differ by thousands: with another's scale all of a tile were zero, or 448.
double size_of_tile(std::int64_t a, std::int64_t b) {
  return std::ldexp(1.0, static_cast<int>(15 * ((a + b) % 3)));
}

TEST(E4m3, EachTileHasItsScale) {
  PoisonedContext ctx;
  const std::int64_t rows = 300, columns = 200;
  const auto check = [&](const Tensor& x, const Tensor& rounded, auto tile_of) {
    std::map<std::pair<std::int64_t, std::int64_t>, double> largest;
    const std::vector<double> value = values(x), found = values(rounded);
    const auto at = [&](std::int64_t r, std::int64_t c) { return static_cast<std::size_t>(r * columns + c); };
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < columns; ++c)
        largest[tile_of(r, c)] = std::max(largest[tile_of(r, c)], std::abs(value[at(r, c)]));
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < columns; ++c)
        ASSERT_TRUE(is_rounded(found[at(r, c)], value[at(r, c)], largest[tile_of(r, c)])) << r << ", " << c;
  };
  const auto filled = [&](auto tile_of) {
    OwnedTensor x = normal_strided(rows, columns, DType::f32, "x");
    std::vector<double> all = values(x);
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < columns; ++c) {
        const auto [a, b] = tile_of(r, c);
        all[static_cast<std::size_t>(r * columns + c)] *= size_of_tile(a, b);
      }
    fill(x, all);
    return x;
  };
  const auto of_rows = [](std::int64_t r, std::int64_t c) { return std::pair(r, c / 128); };
  const auto of_blocks = [](std::int64_t r, std::int64_t c) { return std::pair(r / 128, c / 128); };
  // Experts of 5, 0, 140 and 155 rows.
  const OwnedTensor offset = ints({0, 5, 5, 145, 300});
  const auto of_columns = [](std::int64_t r, std::int64_t c) {
    return std::pair(r < 5 ? 0 : r < 145 ? 1 + (r - 5) / 128 : 3 + (r - 145) / 128, c);
  };
  const OwnedTensor by_rows = filled(of_rows), by_blocks = filled(of_blocks), by_columns = filled(of_columns);
  check(by_rows, ops::cpu::e4m3_along_rows<float>(by_rows, ctx), of_rows);
  check(by_blocks, ops::cpu::e4m3_blocks<float>(by_blocks, ctx), of_blocks);
  check(by_columns, ops::cpu::e4m3_along_columns<float>(by_columns, offset, ctx), of_columns);
}

// A product is that of the rounded operands: in float and, exactly, in double.
TEST(E4m3, ProductsAreThoseOfRoundedOperands) {
  PoisonedContext ctx, plain;
  ctx.matmul = MatmulType::e4m3;
  const std::int64_t T = 150, N = 140, K = 260;
  for (const DType type : {DType::f32, DType::f64}) {
    const OwnedTensor in = normal({T, K}, type, "in"), weight = normal({N, K}, type, "weight"),
                      dout = normal({T, N}, type, "dout");
    const auto rounded = [&](const OwnedTensor& x, auto&& f) {
      return type == DType::f32 ? f.template operator()<float>(x) : f.template operator()<double>(x);
    };
    const auto rows = [&]<class X>(const OwnedTensor& x) { return ops::cpu::e4m3_along_rows<X>(x, plain); };
    const auto columns = [&]<class X>(const OwnedTensor& x) {
      return ops::cpu::e4m3_along_columns<X>(x, {}, plain);
    };
    const auto blocks = [&]<class X>(const OwnedTensor& x) { return ops::cpu::e4m3_blocks<X>(x, plain); };
    const OwnedTensor out({T, N}, type), expected_out({T, N}, type), din({T, K}, type),
        expected_din({T, K}, type), dweight = normal({N, K}, type, "start"),
                                    expected_dweight = normal({N, K}, type, "start");
    ops::linear_forward(out, in, weight, Write::set, ctx);
    ops::linear_forward(expected_out, rounded(in, rows), rounded(weight, blocks), Write::set, plain);
    EXPECT_TRUE(same_bits(out, expected_out));
    ops::linear_backward_input(din, dout, weight, Write::set, ctx);
    ops::linear_backward_input(expected_din, rounded(dout, rows), rounded(weight, blocks), Write::set, plain);
    EXPECT_TRUE(same_bits(din, expected_din));
    ops::linear_backward_weight(dweight, dout, in, ctx);
    ops::linear_backward_weight(expected_dweight, rounded(dout, columns), rounded(in, columns), plain);
    EXPECT_TRUE(same_bits(dweight, expected_dweight));
    EXPECT_EQ(ctx.matmul, MatmulType::e4m3);
  }
}

// Of a run in FP8 these are the layers' products alone; a router's stay float32 within them.
TEST(E4m3, IsOfLayersAlone) {
  Context ctx;
  ctx.matmul = MatmulType::bf16;
  {
    const LayerProducts layer(ctx);
    EXPECT_EQ(ctx.matmul, MatmulType::bf16);
  }
  ctx.e4m3_layers = true;
  {
    const LayerProducts layer(ctx);
    EXPECT_EQ(ctx.matmul, MatmulType::e4m3);
    const Float32Products router(ctx);
    EXPECT_EQ(ctx.matmul, MatmulType::f32);
  }
  EXPECT_EQ(ctx.matmul, MatmulType::bf16);
}

}  // namespace
}  // namespace switchyard::test
