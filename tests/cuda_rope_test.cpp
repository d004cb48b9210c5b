#include "ops/rope.h"

#include <gtest/gtest.h>

#include <cmath>

#include "cuda_support.h"

namespace switchyard::test {
namespace {

struct Sizes {
  std::int64_t tokens, seq_len, heads, pairs, nope, margin;
  ops::RopePairs kind;
  std::int64_t head_dim() const { return nope + 2 * pairs; }
};
// One pair, odd widths, a last sequence that is not whole, a head that is turned in part, rows of packs with
// and without a margin, and more heads than one pass of a block turns.
const Sizes kSizes[] = {
    {1, 1, 1, 1, 0, 0, ops::RopePairs::halves},       {1, 1, 1, 1, 0, 0, ops::RopePairs::neighbours},
    {34, 17, 3, 5, 0, 3, ops::RopePairs::halves},     {34, 17, 3, 5, 1, 3, ops::RopePairs::neighbours},
    {17, 6, 3, 8, 8, 8, ops::RopePairs::halves},      {17, 6, 3, 8, 8, 8, ops::RopePairs::neighbours},
    {300, 300, 2, 16, 0, 0, ops::RopePairs::halves},  {9, 4, 2, 16, 5, 8, ops::RopePairs::halves},
    {3, 3, 40, 64, 0, 0, ops::RopePairs::neighbours}, {70, 9, 1, 4, 0, 4, ops::RopePairs::halves}};

class CudaRope : public ::testing::TestWithParam<DType> {};

TEST_P(CudaRope, EqualsTheCpu) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(::testing::Message() << s.tokens << " x " << s.heads << " x " << s.head_dim() << ", "
                                      << s.pairs << " pairs, margin " << s.margin);
    DeviceContext ctx;
    Context host_ctx;
    const Shape shape{s.tokens, s.heads * s.head_dim()}, table_shape{s.seq_len + 2, s.pairs};
    const auto cos = DeviceTensor::of(normal(table_shape, DType::f64, "cos"), DType::f32, ctx);
    const auto sin = DeviceTensor::of(normal(table_shape, DType::f64, "sin"), DType::f32, ctx);
    const auto x = DeviceTensor::of(normal(shape, DType::f64, "x"), GetParam(), ctx, s.margin);
    const auto dx = DeviceTensor::of(normal(shape, DType::f64, "dx"), GetParam(), ctx, s.margin);
    const OwnedTensor x64 = x.as_f64(), dx64 = dx.as_f64(), cos64 = cos.as_f64(), sin64 = sin.as_f64();
    const ops::RopeLayout layout{s.head_dim(), s.kind};
    ops::rope_forward(x64, cos64, sin64, s.seq_len, layout, host_ctx);
    ops::rope_backward(dx64, cos64, sin64, s.seq_len, layout, host_ctx);

    ops::cuda::rope_forward(x, cos, sin, s.seq_len, layout, ctx);
    ops::cuda::rope_backward(dx, cos, sin, s.seq_len, layout, ctx);
    // Two products and their sum, of numbers up to about 10, rounded to 6e-8 each; bf16 rounds the result to 8
    // bits.
    const double relative = GetParam() == DType::bf16 ? 0x1p-8 : 0;
    EXPECT_TRUE(all_near(x.values(), values(x64), relative, 2e-6));
    EXPECT_TRUE(all_near(dx.values(), values(dx64), relative, 2e-6));
    EXPECT_TRUE(x.margins_untouched());
    EXPECT_TRUE(dx.margins_untouched());
  }
}

INSTANTIATE_TEST_SUITE_P(Types, CudaRope, ::testing::Values(DType::f32, DType::bf16),
                         [](const auto& instance) { return name_of(instance.param); });

TEST(CudaRopeTable, EqualsTheCpu) {
  DeviceContext ctx;
  Context host_ctx;
  const Shape shape{70, 5};  // positions whose angles are large, in double as on the CPU
  const OwnedTensor cos64(shape, DType::f64), sin64(shape, DType::f64), frequency({5}, DType::f64);
  fill(frequency, {1000, 1, 0.1, 0.01, 0.001});
  ops::rope_table(cos64, sin64, frequency, 1.25, host_ctx);
  const auto on_device = DeviceTensor::of(frequency, ctx);
  for (const Tensor& from : {frequency.view(), on_device.view()}) {
    const DeviceTensor cos(shape, DType::f32, ctx), sin(shape, DType::f32, ctx);
    ops::cuda::rope_table(cos, sin, from, 1.25, ctx);
    // Rounded once, to float32.
    EXPECT_TRUE(all_near(cos.values(), values(cos64), 0x1p-24, 0));
    EXPECT_TRUE(all_near(sin.values(), values(sin64), 0x1p-24, 0));
  }
}

}  // namespace
}  // namespace switchyard::test
