#include "ops/routing.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "cuda_support.h"

#ifdef SWITCHYARD_SIMT
#include "engine.h"
#endif

namespace switchyard::test {
namespace {

constexpr std::int64_t kBins = 2 * ops::kGapBins;

// Counts are whole numbers and gaps are rounded alike: exact. The device's counts are asked for on the device,
// on the host, and with the blocks in the other order.
void expect_counts_of_cpu(const Tensor& score_TE, const Tensor& value_E, const Tensor& cutoff_T,
                          const Tensor& token_T, std::int64_t margin) {
  DeviceContext ctx;
  Context host_ctx;
  const Shape shape{score_TE.dim(1), kBins};
  const OwnedTensor by_value(shape, DType::f64), by_cutoff(shape, DType::f64);
  ops::score_gap_histogram(by_value, score_TE, value_E, token_T, host_ctx);
  ops::cutoff_gap_histogram(by_cutoff, score_TE, cutoff_T, token_T, host_ctx);

  const auto score = DeviceTensor::of(score_TE, DType::f32, ctx, margin);
  const auto value = DeviceTensor::of(value_E, ctx), cutoff = DeviceTensor::of(cutoff_T, ctx),
             skip = DeviceTensor::of(token_T, ctx);
  const DeviceTensor count(shape, DType::f64, ctx);
  const OwnedTensor host_count(shape, DType::f64);
  ops::cuda::score_gap_histogram(count, score, value, skip, ctx);
  ops::cuda::score_gap_histogram(host_count, score, value, skip, ctx);
  EXPECT_EQ(count.values(), values(by_value));
  EXPECT_EQ(values(host_count), values(by_value));
#ifdef SWITCHYARD_SIMT
  simt::set_block_order(simt::BlockOrder::descending);
#endif
  ops::cuda::cutoff_gap_histogram(count, score, cutoff, skip, ctx);
#ifdef SWITCHYARD_SIMT
  simt::set_block_order(simt::BlockOrder::ascending);
#endif
  EXPECT_EQ(count.values(), values(by_cutoff));
}

// One expert, no multiple of a block's experts, several stretches of tokens, no tokens.
TEST(CudaHistogram, EqualsTheCpu) {
  struct {
    std::int64_t tokens, n_experts, margin;
  } const sizes[] = {{1, 1, 0}, {40, 19, 3}, {1100, 3, 0}, {0, 4, 0}};
  for (const auto& s : sizes) {
    SCOPED_TRACE(::testing::Message() << s.tokens << " x " << s.n_experts);
    const OwnedTensor skip({s.tokens}, DType::i32);
    fill_int(skip, "skip", -1, 5);
    expect_counts_of_cpu(normal({s.tokens, s.n_experts}, DType::f32, "score", 0.01),
                         normal({s.n_experts}, DType::f32, "value", 0.01),
                         normal({s.tokens}, DType::f32, "cutoff", 0.01), skip, s.margin);
  }
}

// At each border and next to it, on both sides of 0, and what has no place: zeros of both signs, infinities, a
// NaN.
TEST(CudaHistogram, BordersAndSpecialValues) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  std::vector<double> gaps{0.0, -0.0, std::nan(""), 1e-30, 1e30, -1e-30, -1e30, 1e-45};
  for (const double border : ops::gap_borders()) {
    const auto nearest = static_cast<float>(border);
    for (const float gap : {nearest, std::nextafter(nearest, kInf), std::nextafter(nearest, -kInf)}) {
      gaps.push_back(gap);
      gaps.push_back(-gap);
    }
  }
  const auto n = static_cast<std::int64_t>(gaps.size());
  const OwnedTensor score({n, 1}, DType::f32), zero({1}, DType::f32), zeros({n}, DType::f32),
      skip({n}, DType::i32);
  fill(score, gaps);
  fill(zero, {0.0});
  fill(zeros, std::vector<double>(gaps.size(), 0.0));
  fill(skip, std::vector<double>(gaps.size(), 0.0));
  expect_counts_of_cpu(score, zero, zeros, skip, 0);
}

// Infinities are farther than the last border.
TEST(CudaHistogram, InfiniteGaps) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  DeviceContext ctx;
  const OwnedTensor score({3, 1}, DType::f32), value({1}, DType::f32);
  fill(score, {kInf, -kInf, kInf});
  fill(value, {1.0});
  const DeviceTensor count({1, kBins}, DType::f64, ctx);
  ops::cuda::score_gap_histogram(count, DeviceTensor::of(score, ctx), DeviceTensor::of(value, ctx),
                                 DeviceTensor::of(ints({0, 0, 0}), ctx), ctx);
  std::vector<double> expected(kBins, 0.0);
  expected.front() = 1;
  expected.back() = 2;
  EXPECT_EQ(count.values(), expected);
}

}  // namespace
}  // namespace switchyard::test
