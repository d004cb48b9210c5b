#include "ops/elementwise.h"

#include <gtest/gtest.h>

#include "cuda_support.h"
#include "rounding_bound.h"

#ifdef SWITCHYARD_SIMT
#include "engine.h"
#endif

namespace switchyard::test {
namespace {

struct Sizes {
  std::int64_t rows, width, margin;  // margin > 0: strided rows; 8 keeps them at multiples of 16 bytes
};
// Widths with and without whole packs and beyond a warp's, no rows, rows of several blocks.
const Sizes kSizes[] = {{1, 1, 0},   {3, 5, 5},   {0, 8, 0},    {0, 7, 0},
                        {17, 33, 0}, {9, 264, 8}, {200, 65, 3}, {300, 24, 0}};

class CudaBias : public ::testing::TestWithParam<DType> {
 protected:
  static DeviceTensor rows(const Sizes& s, const char* name, const DeviceContext& ctx) {
    return DeviceTensor::of(normal({s.rows, s.width}, DType::f64, name), GetParam(), ctx, s.margin);
  }
};

TEST_P(CudaBias, ForwardEqualsTheCpu) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(::testing::Message() << s.rows << " x " << s.width << " margin " << s.margin);
    DeviceContext ctx;
    Context host_ctx;
    const auto out = rows(s, "out", ctx);
    const auto bias = DeviceTensor::of(normal({s.width}, DType::f64, "bias"), GetParam(), ctx);
    const OwnedTensor out64 = out.as_f64();
    ops::bias_forward(out64, bias.as_f64(), host_ctx);
    ops::cuda::bias_forward(out, bias, ctx);
    // One rounding of the sum; in bf16 a second one.
    EXPECT_TRUE(all_near(out.values(), values(out64), GetParam() == DType::f32 ? 0x1p-24 : 0x1.001p-8, 0));
    EXPECT_TRUE(out.margins_untouched());
  }
}

TEST_P(CudaBias, BackwardIsWithinRoundingInAnyBlockOrder) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(::testing::Message() << s.rows << " x " << s.width << " margin " << s.margin);
    DeviceContext ctx;
    Context host_ctx;
    const auto dout = rows(s, "dout", ctx);
    const OwnedTensor start = normal({s.width}, DType::f32, "start");
    const auto dbias = DeviceTensor::of(start, ctx), again = DeviceTensor::of(start, ctx);
    const OwnedTensor dout64 = dout.as_f64(), exact = dbias.as_f64(), magnitude = absolute(exact);
    ops::bias_backward(exact, dout64, host_ctx);
    ops::bias_backward(magnitude, absolute(dout64), host_ctx);
    ops::cuda::bias_backward(dbias, dout, ctx);
    EXPECT_TRUE(within_rounding(dbias.values(), values(exact), values(magnitude), s.rows));
#ifdef SWITCHYARD_SIMT
    simt::set_block_order(simt::BlockOrder::descending);
#endif
    ops::cuda::bias_backward(again, dout, ctx);
#ifdef SWITCHYARD_SIMT
    simt::set_block_order(simt::BlockOrder::ascending);
#endif
    EXPECT_EQ(again.values(), dbias.values());
  }
}

INSTANTIATE_TEST_SUITE_P(Types, CudaBias, ::testing::Values(DType::f32, DType::bf16),
                         [](const auto& instance) { return name_of(instance.param); });

}  // namespace
}  // namespace switchyard::test
