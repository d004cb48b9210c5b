#include "ops/complexity.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "cuda_support.h"

namespace switchyard::test {
namespace {

struct Sizes {
  std::int64_t tokens, experts, margin;
};
const Sizes kSizes[] = {{1, 1, 0}, {3, 5, 3}, {70, 64, 8}, {9, 33, 0}, {20, 8, 0}, {0, 4, 0}};

// Every seventh token does not count.
OwnedTensor padding(std::int64_t tokens) {
  std::vector<double> ids;
  for (std::int64_t t = 0; t < tokens; ++t) ids.push_back(t % 7 == 2 ? -1 : 3);
  return ints(ids);
}

TEST(CudaEntropy, EqualsTheCpu) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(::testing::Message() << s.tokens << " x " << s.experts << " margin " << s.margin);
    DeviceContext ctx;
    Context host_ctx;
    const OwnedTensor logits = normal({s.tokens, s.experts}, DType::f32, "logit", 2),
                      probs({s.tokens, s.experts}, DType::f64), lses({s.tokens}, DType::f64);
    if (s.tokens > 2) set(logits, 1, -std::numeric_limits<double>::infinity());  // a probability of 0
    for (std::int64_t t = 0; t < s.tokens; ++t) {
      double sum = 0;
      for (std::int64_t e = 0; e < s.experts; ++e) sum += std::exp(logits[t * s.experts + e]);
      for (std::int64_t i = t * s.experts; i < (t + 1) * s.experts; ++i)
        set(probs, i, std::exp(logits[i]) / sum);
      set(lses, t, std::log(sum));
    }
    const OwnedTensor skip = padding(s.tokens);
    const auto logit = DeviceTensor::of(logits, DType::f32, ctx, s.margin),
               prob = DeviceTensor::of(probs, DType::f32, ctx, s.margin),
               lse = DeviceTensor::of(lses, DType::f32, ctx),
               dlogit =
                   DeviceTensor::of(normal({s.tokens, s.experts}, DType::f64, "d"), DType::f32, ctx, s.margin),
               device_skip = DeviceTensor::of(skip, ctx);
    const DeviceTensor entropy({s.tokens}, DType::f32, ctx);
    const OwnedTensor entropy64({s.tokens}, DType::f64), dlogit64 = dlogit.as_f64(), logit64 = logit.as_f64(),
                                                         prob64 = prob.as_f64(), lse64 = lse.as_f64();
    ops::softmax_entropy_forward(entropy64, logit64, prob64, lse64, host_ctx);
    ops::softmax_entropy_backward(dlogit64, entropy64, logit64, prob64, lse64, skip, 0.3, host_ctx);
    const double sum64 =
        number_from([&](Tensor sum_1) { ops::sum_of_tokens(sum_1, entropy64, skip, host_ctx); });

    ops::cuda::softmax_entropy_forward(entropy, logit, prob, lse, ctx);
    ops::cuda::softmax_entropy_backward(dlogit, entropy, logit, prob, lse, device_skip, 0.3, ctx);
    // A sum of up to 64 terms of order one, taken from a number of up to about ten.
    EXPECT_TRUE(all_near(entropy.values(), values(entropy64), 1e-6, 2e-6));
    EXPECT_TRUE(all_near(dlogit.values(), values(dlogit64), 1e-6, 1e-6));
    // In double, of numbers that are off by that much each.
    const auto sum =
        number_from([&](Tensor sum_1) { ops::cuda::sum_of_tokens(sum_1, entropy, device_skip, ctx); });
    EXPECT_NEAR(sum, sum64, 2e-6 * static_cast<double>(s.tokens));
    EXPECT_TRUE(dlogit.margins_untouched());
  }
}

// More tokens than one block sums, in double: small numbers beside a large one are not lost.
TEST(CudaEntropy, SumsTokensInDouble) {
  DeviceContext ctx;
  const OwnedTensor x = normal({2500}, DType::f32, "ones", 0, 1.0), skip = padding(2500);
  set(x, 0, 0x1p30);
  double expected = 0;
  for (std::int64_t t = 0; t < x.numel(); ++t) expected += skip[t] < 0 ? 0 : x[t];
  const DeviceTensor sum({1}, DType::f64, ctx);  // a result that stays on the device
  ops::cuda::sum_of_tokens(sum, DeviceTensor::of(x, ctx), DeviceTensor::of(skip, ctx), ctx);
  EXPECT_EQ(sum.values(), std::vector<double>{expected});
}

}  // namespace
}  // namespace switchyard::test
