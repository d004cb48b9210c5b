#include "ops/norm.h"

#include <gtest/gtest.h>

#include "cuda_support.h"
#ifdef SWITCHYARD_SIMT
#include "simt/engine.h"
#endif

namespace switchyard::test {
namespace {

constexpr double kEps = 1e-5;

struct Sizes {
  std::int64_t rows, groups, width, margin;  // margin > 0: strided rows; 8 keeps them at multiples of 16 bytes
};
// Widths that are no multiple of a pack or a warp; teams of 1 to 32 lanes and several packs a lane; of a block
// with one, two and four packs a thread, the last threads idle; wider than a block's or a warp's room, of packs
// and beside them; rows that fill several blocks, the last of them in part.
const Sizes kSizes[] = {{1, 1, 1, 0},    {3, 2, 3, 5},    {5, 3, 17, 5},   {70, 1, 24, 0},  {9, 4, 32, 8},
                        {40, 2, 129, 3}, {45, 3, 128, 8}, {37, 2, 256, 0}, {33, 1, 520, 8}, {11, 1, 512, 0},
                        {5, 1, 1032, 0}, {6, 1, 2056, 8}, {5, 1, 4104, 8}, {2, 1, 8200, 0}};

// What the CPU computes in double of the same (rounded) inputs is what the kernels are held to.
class CudaRmsNorm : public ::testing::TestWithParam<DType> {
 protected:
  // f32: sums of up to 8200 terms, of at most 260 in a row, each rounding 6e-8; bf16: the result is rounded
  // once more, to 8 bits.
  double relative() const { return GetParam() == DType::bf16 ? 0x1p-7 : 1e-5; }
};

TEST_P(CudaRmsNorm, EqualsTheCpu) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(::testing::Message() << s.rows << " x " << s.groups << " x " << s.width << " margin "
                                      << s.margin);
    DeviceContext ctx;
    Context host_ctx;
    const Shape shape{s.rows, s.groups * s.width};
    const DType dtype = GetParam();
    const auto in = DeviceTensor::of(normal(shape, DType::f64, "in"), dtype, ctx, s.margin);
    const auto weight = DeviceTensor::of(normal({s.width}, DType::f64, "weight", 0.3, 1.0), dtype, ctx);
    const auto dout = DeviceTensor::of(normal(shape, DType::f64, "dout"), dtype, ctx, s.margin);
    const auto din = DeviceTensor::of(normal(shape, DType::f64, "din"), dtype, ctx, s.margin);
    const auto dweight = DeviceTensor::of(normal({s.width}, DType::f64, "dweight"), DType::f32, ctx);
    const auto out = s.margin > 0 ? DeviceTensor::strided(s.rows, shape[1], dtype, ctx, s.margin)
                                  : DeviceTensor(shape, dtype, ctx);
    const DeviceTensor rstd({s.rows, s.groups}, DType::f32, ctx);

    const OwnedTensor in64 = in.as_f64(), weight64 = weight.as_f64(), dout64 = dout.as_f64(),
                      din64 = din.as_f64(), dweight64 = dweight.as_f64(), out64(shape, DType::f64),
                      rstd64({s.rows, s.groups}, DType::f64);
    ops::rmsnorm_forward(out64, rstd64, in64, weight64, kEps, host_ctx);
    ops::rmsnorm_backward(din64, dweight64, dout64, in64, rstd64, weight64, host_ctx);

    ops::cuda::rmsnorm_forward(out, rstd, in, weight, kEps, ctx);
    ops::cuda::rmsnorm_backward(din, dweight, dout, in, rstd, weight, ctx);
    EXPECT_TRUE(all_near(rstd.values(), values(rstd64), 1e-6, 0));
    EXPECT_TRUE(all_near(out.values(), values(out64), relative(), 1e-6));
    // Sums of terms of order one and of both signs: the rounding is relative to the terms, not to what is left.
    EXPECT_TRUE(all_near(din.values(), values(din64), relative(), dtype == DType::bf16 ? 0x1p-7 : 1e-5));
    EXPECT_TRUE(all_near(dweight.values(), values(dweight64), 1e-5, 1e-4));
    EXPECT_TRUE(out.margins_untouched());
    EXPECT_TRUE(din.margins_untouched());
  }
}

#ifdef SWITCHYARD_SIMT
TEST_P(CudaRmsNorm, SameBitsInAnyOrderOfBlocks) {
  // Teams of less than a warp, of a block, and any groups.
  for (const Sizes& s : {Sizes{70, 3, 64, 0}, Sizes{11, 1, 1032, 0}, Sizes{70, 1, 33, 0}}) {
    std::vector<std::vector<double>> results;
    for (const auto order : {simt::BlockOrder::ascending, simt::BlockOrder::descending}) {
      simt::set_block_order(order);
      DeviceContext ctx;
      const Shape shape{s.rows, s.groups * s.width};
      const auto in = DeviceTensor::of(normal(shape, DType::f64, "in"), GetParam(), ctx);
      const auto dout = DeviceTensor::of(normal(shape, DType::f64, "dout"), GetParam(), ctx);
      const auto din = DeviceTensor::of(normal(shape, DType::f64, "din"), GetParam(), ctx);
      const auto weight = DeviceTensor::of(normal({s.width}, DType::f64, "weight"), GetParam(), ctx);
      const auto dweight = DeviceTensor::of(normal({s.width}, DType::f32, "dweight"), ctx);
      const DeviceTensor out(shape, GetParam(), ctx), rstd({s.rows, s.groups}, DType::f32, ctx);
      ops::cuda::rmsnorm_forward(out, rstd, in, weight, kEps, ctx);
      ops::cuda::rmsnorm_backward(din, dweight, dout, in, rstd, weight, ctx);
      for (const DeviceTensor* tensor : {&out, &din, &dweight}) results.push_back(tensor->values());
    }
    simt::set_block_order(simt::BlockOrder::ascending);
    for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(results[i], results[i + 3]) << i << " of width " << s.width;
  }
}
#endif

INSTANTIATE_TEST_SUITE_P(Types, CudaRmsNorm, ::testing::Values(DType::f32, DType::bf16),
                         [](const auto& instance) { return name_of(instance.param); });

TEST(CudaRmsNormInPlace, OutMayBeIn) {
  DeviceContext ctx;
  const OwnedTensor host = normal({6, 40}, DType::f32, "in");
  const auto in = DeviceTensor::of(host, ctx), in_place = DeviceTensor::of(host, ctx);
  const auto weight = DeviceTensor::of(normal({40}, DType::f32, "weight"), ctx);
  const DeviceTensor out({6, 40}, DType::f32, ctx), rstd({6, 1}, DType::f32, ctx);
  ops::cuda::rmsnorm_forward(out, rstd, in, weight, kEps, ctx);
  ops::cuda::rmsnorm_forward(in_place, rstd, in_place, weight, kEps, ctx);
  EXPECT_EQ(out.values(), in_place.values());
}

}  // namespace
}  // namespace switchyard::test
