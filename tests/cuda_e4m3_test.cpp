// What the device makes of single values in E4M3, and sums of many tiles. cuda_linear_test.cpp has the shapes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "cuda_support.h"
#include "ops/cpu/e4m3.h"
#include "ops/linear.h"
#include "rounding_bound.h"

namespace switchyard::test {
namespace {

using ops::Write;

constexpr std::int64_t kTile = 128;

class CudaE4m3 : public ::testing::TestWithParam<DType> {
 protected:
  CudaE4m3() { ctx.matmul = host_ctx.matmul = MatmulType::e4m3; }
  void SetUp() override {
    const std::string reason = ops::cuda::e4m3_unavailable_reason();
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
  DeviceTensor on_device(const Tensor& host) { return DeviceTensor::of(host, GetParam(), ctx); }
  DeviceContext ctx;
  Context host_ctx;
};

// 128 x 128 values, 448 on the diagonal and otherwise all numbers of E4M3, the middles between neighbours, and
// the floats beside those: a tile of each row, of each column and the whole block have scale 1.
OwnedTensor values_around_e4m3() {
  std::vector<double> each;
  for (int bits = 0; bits < 0x7e; ++bits) {
    const auto number = [](int of) {
      return of < 8 ? std::ldexp(static_cast<float>(of), -9)
                    : std::ldexp(1.0f + static_cast<float>(of % 8) / 8, of / 8 - 7);
    };
    const float middle = (number(bits) + number(bits + 1)) / 2;
    for (const float x : {number(bits), middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1e9f)}) {
      each.push_back(x);
      each.push_back(-x);
    }
  }
  std::vector<double> all;
  for (std::int64_t i = 0; i < kTile * kTile; ++i)
    all.push_back(i / kTile == i % kTile ? 448 : each[static_cast<std::size_t>(i) % each.size()]);
  OwnedTensor values({kTile, kTile}, DType::f64);
  fill(values, all);
  return values;
}

OwnedTensor transposed(const Tensor& x) {
  OwnedTensor result({x.dim(1), x.dim(0)}, DType::f64);
  for (std::int64_t i = 0; i < x.numel(); ++i) set(result, i % x.dim(1) * x.dim(0) + i / x.dim(1), get(x, i));
  return result;
}

TEST_P(CudaE4m3, RoundsToTheNearestAndTiesToEven) {
  const OwnedTensor diagonal({kTile, kTile}, DType::f64);
  for (std::int64_t i = 0; i < kTile * kTile; ++i) set(diagonal, i, i / kTile == i % kTile ? 448 : 0);
  const auto d = on_device(diagonal), x = on_device(values_around_e4m3());
  const OwnedTensor x64 = x.as_f64();  // in bf16 some middles are no middles
  const auto expected = [](const Tensor& of) {
    std::vector<double> all = values(of);
    for (double& value : all) value = 448.0 * ops::cpu::rounded_to_e4m3(static_cast<float>(value));
    return all;
  };
  // Each output is one product, of a rounded value and 448, beside products with zero.
  const auto result = [&] { return DeviceTensor({kTile, kTile}, DType::f32, ctx); };
  const auto out = result(), out_of_weight = result(), din = result(), din_of_dout = result();
  ops::cuda::linear_forward(out, x, d, Write::set, ctx);
  EXPECT_EQ(out.values(), expected(x64)) << "rows";
  ops::cuda::linear_forward(out_of_weight, d, x, Write::set, ctx);
  EXPECT_EQ(out_of_weight.values(), expected(transposed(x64))) << "a weight";
  ops::cuda::linear_backward_input(din, d, x, Write::set, ctx);
  EXPECT_EQ(din.values(), expected(x64)) << "a weight, transposed";
  ops::cuda::linear_backward_input(din_of_dout, x, d, Write::set, ctx);
  EXPECT_EQ(din_of_dout.values(), expected(x64)) << "rows of a gradient";
  const OwnedTensor zeros({kTile, kTile}, DType::f32);
  fill(zeros, std::vector<double>(static_cast<std::size_t>(kTile * kTile), 0.0));
  const auto dweight = DeviceTensor::of(zeros, ctx), dweight_of_dout = DeviceTensor::of(zeros, ctx);
  ops::cuda::linear_backward_weight(dweight, d, x, ctx);
  EXPECT_EQ(dweight.values(), expected(x64)) << "columns";
  ops::cuda::linear_backward_weight(dweight_of_dout, x, d, ctx);
  EXPECT_EQ(dweight_of_dout.values(), expected(transposed(x64))) << "columns of a gradient";
}

// More tiles than the ring has stages, each with a size of its own; some are zeros.
TEST_P(CudaE4m3, AddsUpTilesOfDifferentSizes) {
  constexpr std::int64_t kRows = 5, kOut = 12, kIn = 9 * kTile + 30;
  const auto sized = [](std::int64_t rows, const char* name) {
    OwnedTensor x = normal({rows, kIn}, DType::f64, name);
    for (std::int64_t i = 0; i < x.numel(); ++i) {
      const std::int64_t tile = i % kIn / kTile;
      set(x, i, tile % 4 == 3 ? 0 : std::ldexp(get(x, i), static_cast<int>(7 * tile) % 30 - 20));
    }
    return x;
  };
  const auto in = on_device(sized(kRows, "in")), weight = on_device(sized(kOut, "weight"));
  const DeviceTensor out({kRows, kOut}, DType::f32, ctx);
  ops::cuda::linear_forward(out, in, weight, Write::set, ctx);
  const OwnedTensor exact({kRows, kOut}, DType::f64), magnitude({kRows, kOut}, DType::f64);
  const OwnedTensor in64 = in.as_f64(), weight64 = weight.as_f64();
  ops::linear_forward(exact, in64, weight64, Write::set, host_ctx);
  ops::linear_forward(magnitude, absolute(in64), absolute(weight64), Write::set, host_ctx);
#ifdef SWITCHYARD_SIMT
  EXPECT_TRUE(within_rounding(out.values(), values(exact), values(magnitude), kIn));
#else
  // Tensor cores keep some 14 bits of a sum of products in FP8 (arXiv 2412.19437, section 3.5.2).
  const std::vector<double> of_terms = values(magnitude);
  EXPECT_TRUE(all_near(out.values(), values(exact), 0, 0x1p-9 * *std::ranges::max_element(of_terms)));
#endif
}

// What is no number stays none, in its own row.
TEST_P(CudaE4m3, NoNumberIsSeen) {
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    OwnedTensor in = normal({3, 40}, DType::f64, "in");
    set(in, 40 + 7, bad);
    const auto x = on_device(in), weight = on_device(normal({6, 40}, DType::f64, "weight"));
    const DeviceTensor out({3, 6}, DType::f32, ctx);
    ops::cuda::linear_forward(out, x, weight, Write::set, ctx);
    const std::vector<double> found = out.values();
    for (std::size_t i = 0; i < found.size(); ++i)
      EXPECT_EQ(std::isnan(found[i]), i / 6 == 1) << bad << ", " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Types, CudaE4m3, ::testing::Values(DType::f32, DType::bf16),
                         [](const auto& instance) { return std::string(name_of(instance.param)); });

}  // namespace
}  // namespace switchyard::test
