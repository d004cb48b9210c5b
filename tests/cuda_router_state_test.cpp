#include "ops/router_state.h"

#include <gtest/gtest.h>

#include "cuda_support.h"
#include "ops/routing.h"

namespace switchyard::test {
namespace {

class CudaRouterState : public ::testing::TestWithParam<std::int64_t> {
 protected:
  // Whole numbers, many of them 0; of every third expert nothing at all.
  static OwnedTensor counts(Shape shape, const char* name, std::int64_t most) {
    OwnedTensor tensor(shape, DType::f64);
    fill_int(tensor, name, -2 * most, most);
    const std::int64_t width = tensor.numel() / shape[0];
    for (std::int64_t i = 0; i < tensor.numel(); ++i)
      set(tensor, i, i / width % 3 == 2 || tensor[i] < 0 ? 0 : tensor[i]);
    return tensor;
  }
  std::int64_t experts() const { return GetParam(); }
  DeviceContext ctx_;
  Context host_ctx_;
};
// Every formula is computed in double on both sides and rounded to float32 once.
constexpr double kRounding = 0x1p-23;

TEST_P(CudaRouterState, BiasesEqualTheCpu) {
  for (const bool mean_free : {false, true}) {
    const OwnedTensor bias = normal({experts()}, DType::f32, "bias"), count({experts()}, DType::f64);
    for (std::int64_t e = 0; e < experts(); ++e) set(count, e, static_cast<double>(e % 3));  // below, at, above
    const auto device_bias = DeviceTensor::of(bias, ctx_);
    ops::cuda::balance_bias(device_bias, DeviceTensor::of(count, ctx_), 0.001, mean_free, ctx_);
    ops::balance_bias(bias, count, 0.001, mean_free, host_ctx_);
    if (mean_free)
      EXPECT_TRUE(all_near(device_bias.values(), values(bias), kRounding, kRounding));
    else
      EXPECT_EQ(device_bias.values(), values(bias));
  }
}

TEST_P(CudaRouterState, BiasesWithAStateEqualTheCpu) {
  const OwnedTensor count = counts({experts()}, "count", 9), none({experts()}, DType::f64);
  fill(none, std::vector<double>(static_cast<std::size_t>(experts()), 0));
  const ops::SoftClamp clamp{.speed = 0.5, .kappa = 2, .keep = 0.75};
  for (const OwnedTensor* counted : {&count, static_cast<const OwnedTensor*>(&none)}) {
    const OwnedTensor bias = normal({experts()}, DType::f32, "bias"),
                      momentum = normal({experts()}, DType::f32, "momentum"),
                      load = normal({experts()}, DType::f32, "load", 0.1, 2), shift({experts()}, DType::f32);
    fill_normal(shift, "shift");
    const auto device_bias = DeviceTensor::of(bias, ctx_), device_momentum = DeviceTensor::of(momentum, ctx_),
               device_load = DeviceTensor::of(load, ctx_), device_shift = DeviceTensor::of(shift, ctx_),
               device_count = DeviceTensor::of(*counted, ctx_);
    ops::cuda::balance_bias_softly(device_bias, device_momentum, device_count, clamp, ctx_);
    ops::cuda::follow_load_bias(device_shift, device_load, device_count, 0, 0.5, ctx_);
    ops::balance_bias_softly(bias, momentum, *counted, clamp, host_ctx_);
    ops::follow_load_bias(shift, load, *counted, 0, 0.5, host_ctx_);
    EXPECT_TRUE(all_near(device_momentum.values(), values(momentum), kRounding, kRounding));
    // Momenta that differ in a last place differ as much in their sum with the bias.
    EXPECT_TRUE(all_near(device_bias.values(), values(bias), 2 * kRounding, 2 * kRounding));
    EXPECT_TRUE(all_near(device_load.values(), values(load), kRounding, kRounding));
    // A load that is rounded otherwise moves its logarithm by as much, relative to 1.
    EXPECT_TRUE(all_near(device_shift.values(), values(shift), 2 * kRounding, 2 * kRounding));
  }
}

TEST_P(CudaRouterState, QuantilesEqualTheCpu) {
  const OwnedTensor count = counts({experts(), 2 * ops::kGapBins}, "counts", 4),
                    none({experts(), 2 * ops::kGapBins}, DType::f64);
  fill(none, std::vector<double>(static_cast<std::size_t>(none.numel()), 0));
  for (const OwnedTensor* counted : {&count, static_cast<const OwnedTensor*>(&none)})
    for (const double q : {0.125, 0.5, 1.0}) {
      const OwnedTensor value = normal({experts()}, DType::f32, "value"),
                        bias = normal({experts()}, DType::f32, "bias");
      const auto device_value = DeviceTensor::of(value, ctx_), device_bias = DeviceTensor::of(bias, ctx_),
                 device_count = DeviceTensor::of(*counted, ctx_);
      ops::cuda::follow_quantiles(device_value, device_count, q, 0.75, ctx_);
      ops::cuda::follow_quantile_bias(device_bias, device_count, q, 0.25, ctx_);
      ops::follow_quantiles(value, *counted, q, 0.75, host_ctx_);
      ops::follow_quantile_bias(bias, *counted, q, 0.25, host_ctx_);
      EXPECT_TRUE(all_near(device_value.values(), values(value), kRounding, kRounding)) << q;
      EXPECT_TRUE(all_near(device_bias.values(), values(bias), kRounding, kRounding)) << q;
    }
}

TEST_P(CudaRouterState, MeansAndRatiosEqualTheCpu) {
  const Shape shape{experts(), 7};
  const OwnedTensor sum = normal(shape, DType::f64, "sum", 10), count = counts({experts()}, "count", 9);
  const OwnedTensor mean = normal(shape, DType::f32, "mean"), ema = normal(shape, DType::f32, "ema"),
                    key(shape, DType::f32), ema_count = normal({experts()}, DType::f32, "n", 0.1, 2);
  const auto device_sum = DeviceTensor::of(sum, ctx_), device_count = DeviceTensor::of(count, ctx_),
             device_mean = DeviceTensor::of(mean, ctx_), device_ema = DeviceTensor::of(ema, ctx_),
             device_ema_count = DeviceTensor::of(ema_count, ctx_);
  const DeviceTensor device_key(shape, DType::f32, ctx_);
  ops::cuda::follow_means(device_mean, device_sum, device_count, 0.9, ctx_);
  ops::cuda::follow_ratios(device_key, device_ema, device_ema_count, device_sum, device_count, 0.8, ctx_);
  ops::follow_means(mean, sum, count, 0.9, host_ctx_);
  ops::follow_ratios(key, ema, ema_count, sum, count, 0.8, host_ctx_);
  EXPECT_TRUE(all_near(device_mean.values(), values(mean), kRounding, kRounding));
  EXPECT_TRUE(all_near(device_ema.values(), values(ema), kRounding, kRounding));
  EXPECT_TRUE(all_near(device_ema_count.values(), values(ema_count), kRounding, 0));
  EXPECT_TRUE(all_near(device_key.values(), values(key), kRounding, kRounding));
}

TEST_P(CudaRouterState, TokenMeansEqualTheCpu) {
  const OwnedTensor value = normal({experts()}, DType::f32, "value"),
                    sum = normal({2 * experts()}, DType::f64, "sum", 10);
  const OwnedTensor count = counts({experts()}, "count", 9);
  for (std::int64_t v = 0; v < experts(); ++v) {
    set(sum, experts() + v, count[v]);
    if (v % 4 == 0) set(value, v, 0);
  }
  const auto device_value = DeviceTensor::of(value, ctx_);
  ops::cuda::follow_token_means(device_value, DeviceTensor::of(sum, ctx_), 0.75, ctx_);
  ops::follow_token_means(value, sum, 0.75, host_ctx_);
  EXPECT_TRUE(all_near(device_value.values(), values(value), kRounding, kRounding));
}

INSTANTIATE_TEST_SUITE_P(Experts, CudaRouterState, ::testing::Values(1, 5, 40, 300),
                         [](const auto& instance) { return std::to_string(instance.param); });

TEST(CudaFollowMoments, EqualsTheCpu) {
  DeviceContext ctx;
  Context host_ctx;
  const OwnedTensor mean({1}, DType::f32), variance({1}, DType::f32);
  set(mean, 0, 0), set(variance, 0, 0);
  const auto device_mean = DeviceTensor::of(mean, ctx), device_variance = DeviceTensor::of(variance, ctx);
  // Nothing yet, the first tokens, more of them, less than no variance, none.
  for (const std::vector<double>& moments :
       std::vector<std::vector<double>>{{0, 0, 0}, {4, 8, 24}, {3, 7.5, 20}, {3, 3, 2.9}, {0, 0, 0}}) {
    ops::cuda::follow_moments(device_mean, device_variance, DeviceTensor::of(doubles(moments), ctx), 0.75, ctx);
    ops::follow_moments(mean, variance, doubles(moments), 0.75, host_ctx);
    EXPECT_TRUE(all_near(device_mean.values(), values(mean), kRounding, 0));
    EXPECT_TRUE(all_near(device_variance.values(), values(variance), kRounding, 0));
  }
}

}  // namespace
}  // namespace switchyard::test
