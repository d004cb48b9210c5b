#include "ops/cosine.h"

#include <gtest/gtest.h>

#include "cuda_support.h"
#ifdef SWITCHYARD_SIMT
#include "simt/engine.h"
#endif

namespace switchyard::test {
namespace {

struct Sizes {
  std::int64_t tokens, experts, width, margin;
};
// One of one, odd widths, packs with and without a margin, wider than the packs of a warp, no token.
const Sizes kSizes[] = {{1, 1, 1, 0},   {3, 5, 17, 3}, {20, 40, 32, 8},
                        {9, 3, 264, 0}, {70, 8, 5, 0}, {0, 2, 8, 0}};

TEST(CudaCosine, EqualsTheCpu) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(::testing::Message() << s.tokens << " x " << s.experts << " x " << s.width);
    DeviceContext ctx;
    Context host_ctx;
    const OwnedTensor x_host = normal({s.tokens, s.width}, DType::f64, "x"),
                      means = normal({s.experts, s.width}, DType::f64, "mean");
    for (std::int64_t d = 0; d < s.width; ++d) {  // a token and a mean of length zero
      if (s.tokens > 4) set(x_host, 2 * s.width + d, 0);
      if (s.experts > 4) set(means, s.width + d, 0);
    }
    const auto x = DeviceTensor::of(x_host, DType::f32, ctx, s.margin),
               mean = DeviceTensor::of(means, DType::f32, ctx),
               dx = DeviceTensor::of(normal({s.tokens, s.width}, DType::f64, "dx"), DType::f32, ctx, s.margin);
    // Not the products, so that the test of each operator stands alone.
    const auto score = DeviceTensor::of(normal({s.tokens, s.experts}, DType::f64, "score"), DType::f32, ctx,
                                        s.margin),
               dscore = DeviceTensor::of(normal({s.tokens, s.experts}, DType::f64, "dscore"), DType::f32, ctx);
    const DeviceTensor l1({s.tokens}, DType::f32, ctx), x_norm({s.tokens}, DType::f32, ctx),
        mean_norm({s.experts}, DType::f32, ctx);
    const OwnedTensor x64 = x.as_f64(), score64 = score.as_f64(), dscore64 = dscore.as_f64(),
                      dx64 = dx.as_f64(), l1_64({s.tokens}, DType::f64), x_norm64({s.tokens}, DType::f64),
                      mean_norm64({s.experts}, DType::f64);
    ops::row_norm_l1(l1_64, x64, host_ctx);
    ops::row_norm_l2(x_norm64, x64, host_ctx);
    ops::row_norm_l2(mean_norm64, mean.as_f64(), host_ctx);
    ops::cosine_forward(score64, x_norm64, mean_norm64, host_ctx);
    ops::cosine_backward(dscore64, dx64, score64, x64, x_norm64, mean_norm64, host_ctx);

    ops::cuda::row_norm_l1(l1, x, ctx);
    ops::cuda::row_norm_l2(x_norm, x, ctx);
    ops::cuda::row_norm_l2(mean_norm, mean, ctx);
    ops::cuda::cosine_forward(score, x_norm, mean_norm, ctx);
    ops::cuda::cosine_backward(dscore, dx, score, x, x_norm, mean_norm, ctx);
    // Sums of up to 264 positive terms: 6e-8 for each level of adding up, at most some 20.
    EXPECT_TRUE(all_near(l1.values(), values(l1_64), 2e-6, 0));
    EXPECT_TRUE(all_near(x_norm.values(), values(x_norm64), 2e-6, 0));
    // What is divided by a length of zero is of order 1e12: relative bounds only.
    EXPECT_TRUE(all_near(score.values(), values(score64), 5e-6, 0));
    EXPECT_TRUE(all_near(dscore.values(), values(dscore64), 5e-6, 0));
    // A sum of up to 40 terms of order one and of both signs, over the length's square, from about 0.3.
    EXPECT_TRUE(all_near(dx.values(), values(dx64), 5e-6, 2e-5));
    for (const DeviceTensor* out : {&score, &dx}) EXPECT_TRUE(out->margins_untouched());
  }
}

// Free slots, experts without tokens, tokens without experts, more slots than one vote, several ranges of
// tokens.
OwnedTensor experts_of(std::int64_t tokens, std::int64_t slots) {
  OwnedTensor expert({tokens, slots}, DType::i32);
  for (std::int64_t i = 0; i < expert.numel(); ++i)
    set(expert, i, i / slots % 9 == 8 || i % 4 == 3 ? -1 : static_cast<double>((i % slots + i) % 6));
  return expert;
}
struct Sums {
  DeviceContext ctx;
  OwnedTensor x, expert;
  DeviceTensor device_x, device_expert;

  Sums(const Sizes& s, std::int64_t slots)
      : x(normal({s.tokens, s.width}, DType::f32, "x")),
        expert(experts_of(s.tokens, slots)),
        device_x(DeviceTensor::of(x, DType::f32, ctx, s.margin)),
        device_expert(DeviceTensor::of(expert, DType::i32, ctx, s.margin)) {}
};

TEST(CudaExpertSums, EqualTheCpu) {
  for (const Sizes& s : {Sizes{1, 6, 1, 0}, Sizes{37, 7, 5, 3}, Sizes{100, 20, 132, 4}, Sizes{0, 6, 4, 0}})
    for (const std::int64_t slots : {1, 3}) {
      SCOPED_TRACE(::testing::Message() << s.tokens << " tokens, " << slots << " slots");
      Sums c(s, slots);
      Context host_ctx;
      const OwnedTensor x64(c.x.view().shape(), DType::f64), sum64({s.experts, s.width}, DType::f64),
          count64({s.experts}, DType::f64), host_sum({s.experts, s.width}, DType::f64),
          host_count({s.experts}, DType::f64);
      fill(x64, values(c.x));
      ops::expert_sums(sum64, count64, x64, c.expert, host_ctx);
      const DeviceTensor sum({s.experts, s.width}, DType::f64, c.ctx), count({s.experts}, DType::f64, c.ctx);
      ops::cuda::expert_sums(sum, count, c.device_x, c.device_expert, c.ctx);
      ops::cuda::expert_sums(host_sum, host_count, c.device_x, c.device_expert, c.ctx);
      EXPECT_TRUE(all_near(sum.values(), values(sum64), 1e-13, 1e-13));  // in double, of up to 75 terms
      EXPECT_EQ(count.values(), values(count64));
      EXPECT_EQ(values(host_sum), sum.values());
      EXPECT_EQ(values(host_count), count.values());
    }
}

#ifdef SWITCHYARD_SIMT
TEST(CudaExpertSums, SameBitsInAnyOrderOfBlocks) {
  const auto all = [](simt::BlockOrder order) {
    simt::set_block_order(order);
    Sums c({100, 6, 132, 0}, 3);
    const DeviceTensor sum({6, 132}, DType::f64, c.ctx), count({6}, DType::f64, c.ctx);
    ops::cuda::expert_sums(sum, count, c.device_x, c.device_expert, c.ctx);
    simt::set_block_order(simt::BlockOrder::ascending);
    return sum.values();
  };
  EXPECT_EQ(all(simt::BlockOrder::ascending), all(simt::BlockOrder::descending));
}
#endif

}  // namespace
}  // namespace switchyard::test
