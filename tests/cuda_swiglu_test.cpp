#include "ops/swiglu.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "cuda_support.h"
#include "rounding_bound.h"

namespace switchyard::test {
namespace {

struct Sizes {
  std::int64_t rows, width, margin;  // margin > 0: strided rows; 8 keeps them at multiples of 16 bytes
};
// Widths with and without whole packs, no rows at all, more packs than a block has threads.
const Sizes kSizes[] = {{1, 1, 0}, {3, 3, 5}, {0, 8, 0}, {5, 17, 0}, {9, 40, 8}, {9, 24, 3}, {33, 128, 0}};

class CudaSwiGlu : public ::testing::TestWithParam<DType> {
 protected:
  static DeviceTensor empty(std::int64_t rows, std::int64_t width, const Sizes& s, const DeviceContext& ctx) {
    return s.margin > 0 ? DeviceTensor::strided(rows, width, GetParam(), ctx, s.margin)
                        : DeviceTensor({rows, width}, GetParam(), ctx);
  }
};

TEST_P(CudaSwiGlu, EqualsTheCpu) {
  // The sigmoid to 2e-6 and four roundings of 6e-8; bf16: the result is rounded once more, to 8 bits.
  const double relative = GetParam() == DType::bf16 ? 0x1p-8 : 3e-6;
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(::testing::Message() << s.rows << " x " << s.width << " margin " << s.margin);
    DeviceContext ctx;
    Context host_ctx;
    const auto gate_up =
        DeviceTensor::of(normal({s.rows, 2 * s.width}, DType::f64, "gate_up", 3.0), GetParam(), ctx, s.margin);
    const auto dout =
        DeviceTensor::of(normal({s.rows, s.width}, DType::f64, "dout"), GetParam(), ctx, s.margin);
    const auto out = empty(s.rows, s.width, s, ctx), dgate_up = empty(s.rows, 2 * s.width, s, ctx);

    const OwnedTensor gate_up64 = gate_up.as_f64(), dout64 = dout.as_f64(),
                      out64({s.rows, s.width}, DType::f64), dgate_up64({s.rows, 2 * s.width}, DType::f64);
    ops::swiglu_forward(out64, gate_up64, host_ctx);
    ops::swiglu_backward(dgate_up64, dout64, gate_up64, host_ctx);

    ops::cuda::swiglu_forward(out, gate_up, ctx);
    ops::cuda::swiglu_backward(dgate_up, dout, gate_up, ctx);
    EXPECT_TRUE(all_near(out.values(), values(out64), relative, 0));
    // 1 + g (1 - sigmoid) cancels near g = -1.28: absolute, on numbers of up to about 10.
    EXPECT_TRUE(all_near(dgate_up.values(), values(dgate_up64), relative, 1e-5));
    EXPECT_TRUE(out.margins_untouched());
    EXPECT_TRUE(dgate_up.margins_untouched());

    ops::cuda::swiglu_backward(gate_up, dout, gate_up, ctx);
    EXPECT_EQ(gate_up.values(), dgate_up.values()) << "in place";
    EXPECT_TRUE(gate_up.margins_untouched());
  }
}

// Of experts: all rows but the last two are routed.
TEST_P(CudaSwiGlu, OfExpertsEqualsTheCpu) {
  const double relative = GetParam() == DType::bf16 ? 0x1p-8 : 3e-6;
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(::testing::Message() << s.rows << " x " << s.width << " margin " << s.margin);
    DeviceContext ctx;
    Context host_ctx;
    const std::int64_t rows = s.rows + 2;
    const OwnedTensor offset = ints({0, static_cast<double>(s.rows / 2), static_cast<double>(s.rows)});
    const auto device_offset = DeviceTensor::of(offset, ctx);
    const auto gate_up = DeviceTensor::of(normal({rows, 2 * s.width}, DType::f64, "gate_up", 3.0), GetParam(),
                                          ctx, s.margin),
               dout = DeviceTensor::of(normal({rows, s.width}, DType::f64, "dout"), GetParam(), ctx, s.margin);
    const auto weight = DeviceTensor::of(normal({rows}, DType::f32, "weight"), ctx);
    const DeviceTensor dweight({rows}, DType::f32, ctx);
    const auto out = empty(rows, s.width, s, ctx), dgate_up = empty(rows, 2 * s.width, s, ctx);

    const OwnedTensor gate_up64 = gate_up.as_f64(), dout64 = dout.as_f64(), weight64 = weight.as_f64();
    const OwnedTensor out64({rows, s.width}, DType::f64), dgate_up64({rows, 2 * s.width}, DType::f64),
        dweight64({rows}, DType::f64), magnitude({rows}, DType::f64), ignored({rows, 2 * s.width}, DType::f64);
    ops::expert_swiglu_forward(out64, gate_up64, weight64, offset, host_ctx);
    ops::expert_swiglu_backward(dgate_up64, dweight64, dout64, gate_up64, weight64, offset, host_ctx);
    ops::expert_swiglu_backward(ignored, magnitude, absolute(dout64), absolute(gate_up64), weight64, offset,
                                host_ctx);

    ops::cuda::expert_swiglu_forward(out, gate_up, weight, device_offset, ctx);
    ops::cuda::expert_swiglu_backward(dgate_up, dweight, dout, gate_up, weight, device_offset, ctx);
    const auto first = [&](const std::vector<double>& values) {
      const auto routed = static_cast<std::ptrdiff_t>(values.size()) / rows * s.rows;
      return std::vector(values.begin(), values.begin() + routed);
    };
    EXPECT_TRUE(all_near(first(out.values()), first(values(out64)), relative, 0));
    // Weights of up to 3 on what is said above.
    EXPECT_TRUE(all_near(first(dgate_up.values()), first(values(dgate_up64)), relative, 3e-5));
    // The terms are those of the output, to 3e-6; each partial sum of a lane and of the warp is rounded.
    const std::vector<double> found = dweight.values();
    for (std::int64_t r = 0; r < s.rows; ++r) {
      EXPECT_NEAR(found[static_cast<std::size_t>(r)], get(dweight64, r),
                  (3e-6 + static_cast<double>(s.width) * kFloatUnit) * get(magnitude, r));
    }
    for (const DeviceTensor* tensor : {&out, &dgate_up, &dweight}) {
      const std::vector<double> all = tensor->values();
      EXPECT_TRUE(std::all_of(all.begin() + static_cast<std::ptrdiff_t>(first(all).size()), all.end(),
                              [](double value) { return std::isnan(value); }));
    }
    EXPECT_TRUE(out.margins_untouched() && dgate_up.margins_untouched());

    const DeviceTensor again({rows}, DType::f32, ctx);
    ops::cuda::expert_swiglu_backward(gate_up, again, dout, gate_up, weight, device_offset, ctx);
    EXPECT_EQ(first(gate_up.values()), first(dgate_up.values())) << "in place";
    EXPECT_EQ(first(again.values()), first(found)) << "in place";
  }
}

TEST_P(CudaSwiGlu, LargeGatesStayFinite) {
  DeviceContext ctx;
  OwnedTensor gate_up_host({1, 4}, DType::f32), dout_host({1, 2}, DType::f32);
  fill(gate_up_host, {200, -200, 3, 3});
  fill(dout_host, {1, 1});
  const auto gate_up = DeviceTensor::of(gate_up_host, GetParam(), ctx),
             dout = DeviceTensor::of(dout_host, GetParam(), ctx);
  const DeviceTensor out({1, 2}, GetParam(), ctx);
  ops::cuda::swiglu_forward(out, gate_up, ctx);
  EXPECT_EQ(out.values(), (std::vector<double>{600, 0}));
  ops::cuda::swiglu_backward(gate_up, dout, gate_up, ctx);
  EXPECT_EQ(gate_up.values(), (std::vector<double>{3, 0, 200, 0}));
}

INSTANTIATE_TEST_SUITE_P(Types, CudaSwiGlu, ::testing::Values(DType::f32, DType::bf16),
                         [](const auto& instance) { return name_of(instance.param); });

}  // namespace
}  // namespace switchyard::test
