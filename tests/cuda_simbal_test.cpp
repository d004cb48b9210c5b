#include "ops/simbal.h"

#include <gtest/gtest.h>

#include "cuda_support.h"

namespace switchyard::test {
namespace {

class CudaSimBal : public ::testing::TestWithParam<std::int64_t> {};

TEST_P(CudaSimBal, EqualsTheCpu) {
  const std::int64_t E = GetParam();
  DeviceContext ctx;
  Context host_ctx;
  const OwnedTensor gram = normal({E, E}, DType::f32, "gram"), slope({E, E}, DType::f32),
                    tokens = ints({5, 0, 7}), loss = doubles({3});
  set(gram, 0, 1);  // exactly that of the identity
  const auto device_gram = DeviceTensor::of(gram, ctx), device_loss = DeviceTensor::of(loss, ctx),
             device_tokens = DeviceTensor::of(tokens, ctx);
  const DeviceTensor device_slope({E, E}, DType::f32, ctx);
  ops::cuda::add_simbal_loss(device_loss, device_gram, device_tokens, 0.25, ctx);
  ops::cuda::simbal_slope(device_slope, device_gram, device_tokens, 0.25, ctx);
  ops::add_simbal_loss(loss, gram, tokens, 0.25, host_ctx);
  ops::simbal_slope(slope, gram, tokens, 0.25, host_ctx);
  EXPECT_TRUE(all_near(device_loss.values(), values(loss), 1e-12, 0));  // doubles in another order
  EXPECT_EQ(device_slope.values(), values(slope));
}

INSTANTIATE_TEST_SUITE_P(Experts, CudaSimBal, ::testing::Values(1, 5, 40, 300),
                         [](const auto& instance) { return std::to_string(instance.param); });

}  // namespace
}  // namespace switchyard::test
