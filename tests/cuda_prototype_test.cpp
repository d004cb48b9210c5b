#include "ops/prototype.h"

#include <gtest/gtest.h>

#include "cuda_support.h"
#ifdef SWITCHYARD_SIMT
#include "simt/engine.h"
#endif

namespace switchyard::test {
namespace {

using enum ops::PrototypeSimilarity;
constexpr ops::PrototypeSimilarity kAll[] = {gaussian, mahalanobis, kl, js, hellinger, wasserstein};
constexpr double kSigma = 1.3;

struct Sizes {
  std::int64_t tokens, experts, width, margin;
};
// One of one, less than a tile, more than one tile of tokens, of keys and of places, no token.
const Sizes kSizes[] = {{1, 1, 1, 0},    {3, 5, 4, 3},    {70, 33, 3, 4},
                        {37, 70, 17, 2}, {200, 6, 16, 0}, {0, 3, 2, 0}};

// Of a distribution or its gradient, on the device and as the CPU has it in double.
struct RowPair {
  DeviceTensor mean, log_var;
  OwnedTensor mean64, log_var64;

  RowPair(std::int64_t rows, const Sizes& s, const char* name, DeviceContext& ctx)
      : mean(of(rows, s, std::string(name) + " mean", 0.6, ctx)),
        log_var(of(rows, s, std::string(name) + " log_var", 0.8, ctx)),
        mean64(mean.as_f64()),
        log_var64(log_var.as_f64()) {}
  static DeviceTensor of(std::int64_t rows, const Sizes& s, const std::string& name, double scale,
                         DeviceContext& ctx) {
    const OwnedTensor host = normal({rows, s.width}, DType::f64, name, scale);
    if (rows > 0) set(host, 0, -30);  // a variance under the clamp; as a mean, far from all others
    return DeviceTensor::of(host, DType::f32, ctx, s.margin);
  }
  ops::GaussianRows device() const { return {mean, log_var}; }
  ops::GaussianRows host() const { return {mean64, log_var64}; }
};

struct Case {
  DeviceContext ctx;
  Context host_ctx;
  ops::PrototypeSimilarity similarity;
  RowPair token, key, dtoken, dkey;
  DeviceTensor log_sigma, dlog_sigma, dscore, score;
  OwnedTensor log_sigma64, dlog_sigma64, score64;

  Case(ops::PrototypeSimilarity kind, const Sizes& s)
      : similarity(kind),
        token(s.tokens, s, "token", ctx),
        key(s.experts, s, "key", ctx),
        dtoken(s.tokens, s, "dtoken", ctx),
        dkey(s.experts, s, "dkey", ctx),
        log_sigma(DeviceTensor::of(normal({s.width}, DType::f32, "log_sigma", 0.5), ctx)),
        dlog_sigma(DeviceTensor::of(normal({s.width}, DType::f32, "dlog_sigma"), ctx)),
        dscore(DeviceTensor::of(normal({s.tokens, s.experts}, DType::f32, "dscore"), ctx)),
        score({s.tokens, s.experts}, DType::f32, ctx),
        log_sigma64(log_sigma.as_f64()),
        dlog_sigma64(dlog_sigma.as_f64()),
        score64(score.view().shape(), DType::f64) {}
  void run() {
    const ops::PrototypeMetric metric{similarity, kSigma, log_sigma, dlog_sigma};
    ops::cuda::prototype_similarity_forward(score, token.device(), key.device(), metric, ctx);
    ops::cuda::prototype_similarity_backward(dtoken.device(), dkey.device(), dscore, score, token.device(),
                                             key.device(), metric, ctx);
  }
  void run_on_host() {
    const ops::PrototypeMetric metric{similarity, kSigma, log_sigma64, dlog_sigma64};
    ops::prototype_similarity_forward(score64, token.host(), key.host(), metric, host_ctx);
    ops::prototype_similarity_backward(dtoken.host(), dkey.host(), dscore.as_f64(), score64, token.host(),
                                       key.host(), metric, host_ctx);
  }
};

TEST(CudaPrototype, EqualsTheCpu) {
  for (const ops::PrototypeSimilarity similarity : kAll)
    for (const Sizes& s : kSizes) {
      SCOPED_TRACE(::testing::Message() << "similarity " << static_cast<int>(similarity) << ", " << s.tokens
                                        << " x " << s.experts << " x " << s.width);
      Case c(similarity, s);
      c.run_on_host();
      c.run();
      // A sum of up to 51 terms, each rounded a few times to 6e-8; the root of one near 0 multiplies that.
      EXPECT_TRUE(all_near(c.score.values(), values(c.score64), 5e-6, 5e-6));
      // Sums over up to 200 tokens of terms of order one to ten and of both signs.
      EXPECT_TRUE(all_near(c.dtoken.mean.values(), values(c.dtoken.mean64), 1e-5, 1e-4));
      EXPECT_TRUE(all_near(c.dkey.mean.values(), values(c.dkey.mean64), 1e-5, 3e-4));
      EXPECT_TRUE(all_near(c.dtoken.log_var.values(), values(c.dtoken.log_var64), 1e-5, 1e-4));
      EXPECT_TRUE(all_near(c.dkey.log_var.values(), values(c.dkey.log_var64), 1e-5, 3e-4));
      EXPECT_TRUE(all_near(c.dlog_sigma.values(), values(c.dlog_sigma64), 1e-5, 1e-4));
      for (const RowPair* rows : {&c.dtoken, &c.dkey}) {
        EXPECT_TRUE(rows->mean.margins_untouched());
        EXPECT_TRUE(rows->log_var.margins_untouched());
      }
    }
}

// A token that lies on a key: nothing is lost to cancellation, and the roots stay finite.
TEST(CudaPrototype, IsExactWhereTokenAndKeyAgree) {
  for (const ops::PrototypeSimilarity similarity : kAll) {
    DeviceContext ctx;
    const auto mean = DeviceTensor::of(normal({2, 16}, DType::f32, "same", 3.0), ctx),
               log_var = DeviceTensor::of(normal({2, 16}, DType::f32, "v"), ctx),
               log_sigma = DeviceTensor::of(normal({16}, DType::f32, "sigma"), ctx);
    const DeviceTensor score({2, 2}, DType::f32, ctx);
    ops::cuda::prototype_similarity_forward(score, {mean, log_var}, {mean, log_var}, {similarity, 1, log_sigma},
                                            ctx);
    const bool root = similarity == hellinger || similarity == wasserstein;
    const double best = similarity == gaussian || similarity == mahalanobis ? 1 : root ? -1e-3 : 0;
    EXPECT_NEAR(score.values()[0], best, 1e-9) << static_cast<int>(similarity);
    EXPECT_NEAR(score.values()[3], best, 1e-9) << static_cast<int>(similarity);
  }
}

// Points have no log-variance: none need be given.
TEST(CudaPrototype, PointsNeedNoVariance) {
  Case c(gaussian, {5, 3, 4, 0});
  const ops::PrototypeMetric metric{gaussian, kSigma};
  c.run_on_host();
  ops::cuda::prototype_similarity_forward(c.score, {c.token.mean}, {c.key.mean}, metric, c.ctx);
  ops::cuda::prototype_similarity_backward({c.dtoken.mean}, {c.dkey.mean}, c.dscore, c.score, {c.token.mean},
                                           {c.key.mean}, metric, c.ctx);
  EXPECT_TRUE(all_near(c.dkey.mean.values(), values(c.dkey.mean64), 1e-5, 1e-5));
}

#ifdef SWITCHYARD_SIMT
TEST(CudaPrototype, SameBitsInAnyOrderOfBlocks) {
  const auto all = [](simt::BlockOrder order) {
    simt::set_block_order(order);
    Case c(mahalanobis, {200, 70, 17, 0});
    c.run();
    simt::set_block_order(simt::BlockOrder::ascending);
    return std::vector{c.score.values(), c.dtoken.mean.values(), c.dkey.mean.values(), c.dlog_sigma.values()};
  };
  EXPECT_EQ(all(simt::BlockOrder::ascending), all(simt::BlockOrder::descending));
}
#endif

}  // namespace
}  // namespace switchyard::test
