#include "ops/adamw.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "cuda_support.h"
#include "ops/elementwise.h"

namespace switchyard::test {
namespace {

OwnedTensor as_f64(const Tensor& part, const DeviceTensor& whole, std::int64_t first) {
  OwnedTensor host(part.shape(), DType::f64);
  const std::vector<double> values = whole.values();
  for (std::int64_t i = 0; i < part.numel(); ++i) set(host, i, values[static_cast<std::size_t>(first + i)]);
  return host;
}

struct Range {
  std::int64_t first, count, moments_first;  // of the parameter and its gradient, of both moments
};
// Within one pack, over the edge of two, all of a block's packs and more, no element, the end of the array. The
// last begins at another place of a pack in the moments.
const Range kRanges[] = {{0, 1, 0},    {1, 2, 1}, {3, 2, 3},    {0, 1024, 0}, {2, 1030, 2},
                         {5, 2043, 5}, {7, 0, 7}, {0, 2048, 0}, {4, 1025, 7}};

TEST(CudaAdamW, EqualsTheCpuAndLeavesTheRestAlone) {
  constexpr std::int64_t kSize = 2048;
  const ops::AdamWStep step{1e-2, 0.9, 0.95, 1e-8, 0.1, 3};
  for (const Range& r : kRanges) {
    SCOPED_TRACE(::testing::Message() << r.count << " from " << r.first << " and " << r.moments_first);
    DeviceContext ctx;
    Context host_ctx;
    const auto param = DeviceTensor::of(normal({kSize}, DType::f32, "param"), ctx),
               m = DeviceTensor::of(normal({kSize}, DType::f32, "m", 0.1), ctx),
               v = DeviceTensor::of(normal({kSize}, DType::f32, "v", 0.1, 1.0), ctx),
               grad = DeviceTensor::of(normal({kSize}, DType::f32, "grad"), ctx);
    const auto part = [&](const DeviceTensor& whole, std::int64_t first) {
      return whole.view().slice(first, r.count);
    };
    const Tensor param_P = part(param, r.first), m_P = part(m, r.moments_first), v_P = part(v, r.moments_first),
                 grad_P = part(grad, r.first);
    const OwnedTensor param64 = as_f64(param_P, param, r.first), m64 = as_f64(m_P, m, r.moments_first),
                      v64 = as_f64(v_P, v, r.moments_first), grad64 = as_f64(grad_P, grad, r.first);
    const std::vector<double> grad_before = grad.values();
    // What the three arrays hold in the end.
    const auto expected = [&](const DeviceTensor& whole, const OwnedTensor& part64, std::int64_t first) {
      std::vector<double> values = whole.values();
      for (std::int64_t i = 0; i < r.count; ++i) values[static_cast<std::size_t>(first + i)] = part64[i];
      return values;
    };
    OwnedTensor scale({1}, DType::f64);
    set(scale, 0, 0.7);
    const auto device_scale = DeviceTensor::of(scale, ctx);
    ops::adamw_update(param64, m64, v64, grad64, scale, step, {}, host_ctx);
    const auto param_after = expected(param, param64, r.first), m_after = expected(m, m64, r.moments_first),
               v_after = expected(v, v64, r.moments_first);

    const DeviceTensor weight({kSize}, DType::bf16, ctx);
    ops::cuda::fill_zero(weight, ctx);
    ops::cuda::adamw_update(param_P, m_P, v_P, grad_P, device_scale, step, part(weight, r.first), ctx);
    // Some ten roundings of 6e-8 of numbers of order one.
    EXPECT_TRUE(all_near(param.values(), param_after, 1e-6, 1e-6));
    EXPECT_TRUE(all_near(m.values(), m_after, 1e-6, 1e-6));
    EXPECT_TRUE(all_near(v.values(), v_after, 1e-6, 1e-6));
    EXPECT_EQ(grad.values(), grad_before);
    const DeviceTensor rounded({kSize}, DType::bf16, ctx);
    ops::cuda::fill_zero(rounded, ctx);
    ops::cuda::copy(part(rounded, r.first), param_P, ctx);
    EXPECT_EQ(weight.values(), rounded.values());  // what is outside of the range stays zero
  }
}

TEST(CudaAdamW, UpdatesNothingWithoutAFactor) {
  DeviceContext ctx;
  OwnedTensor none({1}, DType::f64);
  set(none, 0, std::numeric_limits<double>::quiet_NaN());
  const OwnedTensor host = normal({9}, DType::f32, "values");
  const auto param = DeviceTensor::of(host, ctx), m = DeviceTensor::of(host, ctx),
             v = DeviceTensor::of(host, ctx), grad = DeviceTensor::of(host, ctx);
  ops::cuda::adamw_update(param, m, v, grad, DeviceTensor::of(none, ctx), {1e-2, 0.9, 0.95, 1e-8, 0.1, 1}, {},
                          ctx);
  for (const DeviceTensor* each : {&param, &m, &v}) EXPECT_EQ(each->values(), values(host));
}

TEST(CudaAdamW, ClipFactorEqualsTheCpus) {
  for (const double sum : {25.0, 0.0, std::numeric_limits<double>::infinity()}) {
    for (const double clip_norm : {0.0, 1.0, 5.0, 6.0}) {
      DeviceContext ctx;
      Context host_ctx;
      OwnedTensor squares({1}, DType::f64);
      const OwnedTensor expected({1}, DType::f64);
      set(squares, 0, sum);
      ops::clip_factor(expected, squares, clip_norm, host_ctx);
      const DeviceTensor factor({1}, DType::f64, ctx);
      ops::cuda::clip_factor(factor, DeviceTensor::of(squares, ctx), clip_norm, ctx);
      const double actual = factor.values()[0];
      EXPECT_TRUE(actual == expected[0] || (std::isnan(actual) && std::isnan(expected[0])))
          << sum << " " << clip_norm;
    }
  }
}

// The way to write a range does not change its bits.
TEST(CudaAdamW, SameBitsWhereverARangeBegins) {
  const ops::AdamWStep step{1e-2, 0.9, 0.95, 1e-8, 0.1, 1};
  std::vector<std::vector<double>> results;
  for (const std::int64_t first : {0, 1}) {
    DeviceContext ctx;
    const auto array = [&](const char* name, double mean) {
      const OwnedTensor host({first + 9}, DType::f32);
      fill_normal(host.view().slice(first, 9), name, 0.1, mean);
      return DeviceTensor::of(host, ctx);
    };
    const auto param = array("param", 0), m = array("m", 0), v = array("v", 1), grad = array("grad", 0);
    const auto part = [&](const DeviceTensor& whole) { return whole.view().slice(first, 9); };
    OwnedTensor scale({1}, DType::f64);
    set(scale, 0, 0.7);
    ops::cuda::adamw_update(part(param), part(m), part(v), part(grad), DeviceTensor::of(scale, ctx), step, {},
                            ctx);
    std::vector<double> values = param.values();
    results.emplace_back(values.begin() + first, values.end());
  }
  EXPECT_EQ(results[0], results[1]);
}

}  // namespace
}  // namespace switchyard::test
