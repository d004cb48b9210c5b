#include "ops/complexity.h"

#include <gtest/gtest.h>

#include <cmath>

#include "cuda_support.h"

namespace switchyard::test {
namespace {

class CudaComplexity : public ::testing::TestWithParam<std::int64_t> {
 protected:
  std::int64_t tokens() const { return GetParam(); }
  DeviceContext ctx_;
  Context host_ctx_;
};

TEST_P(CudaComplexity, EqualsTheCpu) {
  const auto raw = DeviceTensor::of(normal({tokens()}, DType::f32, "raw", 3.0, 20.0), ctx_);
  const OwnedTensor raw64 = raw.as_f64(), c64({tokens()}, DType::f64);
  const DeviceTensor c({tokens()}, DType::f32, ctx_), count({tokens()}, DType::i32, ctx_);
  for (const double variance : {9.0, 0.0}) {
    const OwnedTensor mean_1 = doubles({20.5}), variance_1 = doubles({variance});
    ops::complexity_calibrated(c64, raw64, mean_1, variance_1, host_ctx_);
    ops::cuda::complexity_calibrated(c, raw, DeviceTensor::of(mean_1, DType::f32, ctx_),
                                     DeviceTensor::of(variance_1, DType::f32, ctx_), ctx_);
    // An exponential and two roundings of 6e-8; the exponent, up to some 5, is rounded as well.
    EXPECT_TRUE(all_near(c.values(), values(c64), 1e-6, 0));
  }
  ops::complexity_above(c64, raw64, 20.25, host_ctx_);
  ops::cuda::complexity_above(c, raw, 20.25, ctx_);
  EXPECT_EQ(c.values(), values(c64));

  std::vector<double> ids;
  for (std::int64_t t = 0; t < tokens(); ++t) ids.push_back(t % 7 == 2 ? -1 : 3);
  const OwnedTensor skip = ints(ids);
  const DeviceTensor moments_3({3}, DType::f64, ctx_);
  const OwnedTensor moments64({3}, DType::f64);
  ops::cuda::token_moments(moments_3, raw, DeviceTensor::of(skip, ctx_), ctx_);
  ops::token_moments(moments64, raw64, skip, host_ctx_);
  const std::vector<double> moments = moments_3.values();
  EXPECT_EQ(moments[0], moments64[0]);
  EXPECT_NEAR(moments[1], moments64[1], 1e-13 * moments64[1]);  // in double, in another order
  EXPECT_NEAR(moments[2], moments64[2], 1e-13 * moments64[2]);
}

// All sixteenths, so that every step of the sum is exact, ties included.
TEST_P(CudaComplexity, CountsSlotsAsTheCpu) {
  const DeviceTensor count({tokens()}, DType::i32, ctx_);
  const OwnedTensor c64({tokens()}, DType::f64), count_host({tokens()}, DType::i32);
  for (std::int64_t t = 0; t < tokens(); ++t)
    set(c64, t, t == 4 ? std::nan("") : static_cast<double>(t % 17) / 16);
  ops::slot_count(count_host, c64, 2, 10, host_ctx_);
  ops::cuda::slot_count(count, DeviceTensor::of(c64, DType::f32, ctx_), 2, 10, ctx_);
  EXPECT_EQ(count.values(), values(count_host));
}

// Of a small vocabulary, so that many tokens meet, and of one with more tokens than come.
TEST_P(CudaComplexity, ByTokenEqualsTheCpu) {
  for (const std::int64_t vocabulary : {3, 5000}) {
    std::vector<double> ids;
    for (std::int64_t t = 0; t < tokens(); ++t)
      ids.push_back(t % 7 == 2 ? -1.0 : static_cast<double>(t * t % vocabulary));
    const OwnedTensor id = ints(ids), value = normal({vocabulary}, DType::f32, "value", 1, 20),
                      norm = normal({tokens()}, DType::f32, "norm", 1, 5), mean({1}, DType::f32),
                      raw({tokens()}, DType::f32), known({tokens()}, DType::i32),
                      sum({2 * vocabulary}, DType::f64);
    set(mean, 0, 2.5);
    for (std::int64_t v = 1; v < vocabulary; v += 2) set(value, v, 0);  // not seen
    for (std::int64_t i = 0; i < sum.numel(); ++i) set(sum, i, static_cast<double>(i % 11));
    const DeviceTensor device_raw({tokens()}, DType::f32, ctx_), device_known({tokens()}, DType::i32, ctx_);
    const auto device_id = DeviceTensor::of(id, ctx_), device_sum = DeviceTensor::of(sum, ctx_);
    ops::cuda::known_values(device_raw, device_known, DeviceTensor::of(value, ctx_),
                            DeviceTensor::of(mean, ctx_), device_id, ctx_);
    ops::known_values(raw, known, value, mean, id, host_ctx_);
    EXPECT_EQ(device_raw.values(), values(raw));
    EXPECT_EQ(device_known.values(), values(known));

    ops::cuda::add_by_token(device_sum, DeviceTensor::of(norm, ctx_), device_id, 128, ctx_);
    ops::add_by_token(sum, norm, id, 128, host_ctx_);
    // Of at most 2500 terms of one sign, one after the other in float32 there and in double here: their
    // roundings of 2^-24 add up to far less than 2500 of them.
    EXPECT_TRUE(all_near(device_sum.values(), values(sum), 1e-5, 0));
  }
}

INSTANTIATE_TEST_SUITE_P(Tokens, CudaComplexity, ::testing::Values(0, 1, 37, 2500),
                         [](const auto& instance) { return std::to_string(instance.param); });

}  // namespace
}  // namespace switchyard::test
