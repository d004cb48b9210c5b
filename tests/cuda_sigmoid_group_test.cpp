#include "ops/sigmoid_group.h"

#include <gtest/gtest.h>

#include <vector>

#include "cuda_support.h"

namespace switchyard::test {
namespace {

struct Sizes {
  std::int64_t tokens, n_experts, margin;  // margin > 0: strided rows
};
const Sizes kSizes[] = {{1, 1, 0}, {9, 8, 3}, {17, 33, 5}, {11, 256, 0}, {2, 515, 0}, {0, 4, 0}};

class CudaSigmoid : public ::testing::TestWithParam<Sizes> {
 protected:
  Shape shape() const { return {GetParam().tokens, GetParam().n_experts}; }
  DeviceTensor input(const Tensor& host) { return DeviceTensor::of(host, DType::f32, ctx_, GetParam().margin); }
  DeviceTensor normal_TE(const char* name, double scale = 1.0) {
    return input(normal(shape(), DType::f64, name, scale));
  }
  DeviceTensor output() {
    return GetParam().margin > 0
               ? DeviceTensor::strided(shape()[0], shape()[1], DType::f32, ctx_, GetParam().margin)
               : DeviceTensor(shape(), DType::f32, ctx_);
  }
  DeviceContext ctx_;
  Context host_ctx_;
};

TEST_P(CudaSigmoid, EqualsTheCpu) {
  const DeviceTensor logit = normal_TE("logit", 5.0), dscore = normal_TE("dscore"), score = output(),
                     dlogit = output();
  ops::cuda::sigmoid_forward(score, logit, ctx_);
  ops::cuda::sigmoid_backward(dlogit, dscore, score, ctx_);
  const OwnedTensor score64(shape(), DType::f64), dlogit64(shape(), DType::f64);
  ops::sigmoid_forward(score64, logit.as_f64(), host_ctx_);
  ops::sigmoid_backward(dlogit64, dscore.as_f64(), score.as_f64(), host_ctx_);
  // A few roundings of 6e-8 each.
  EXPECT_TRUE(all_near(score.values(), values(score64), 5e-7, 0));
  EXPECT_TRUE(all_near(dlogit.values(), values(dlogit64), 5e-7, 0));
  EXPECT_TRUE(score.margins_untouched());
  EXPECT_TRUE(dlogit.margins_untouched());

  const std::vector<double> scores = score.values(), dlogits = dlogit.values();
  ops::cuda::sigmoid_forward(logit, logit, ctx_);
  ops::cuda::sigmoid_backward(dscore, dscore, score, ctx_);
  EXPECT_EQ(logit.values(), scores);
  EXPECT_EQ(dscore.values(), dlogits);
}

TEST_P(CudaSigmoid, RootsOfSoftplusEqualTheCpu) {
  const DeviceTensor logit = normal_TE("logit", 5.0), dscore = normal_TE("dscore"), score = output(),
                     dlogit = output();
  ops::cuda::sqrt_softplus_forward(score, logit, ctx_);
  ops::cuda::sqrt_softplus_backward(dlogit, dscore, score, ctx_);
  const OwnedTensor score64(shape(), DType::f64), dlogit64(shape(), DType::f64);
  ops::sqrt_softplus_forward(score64, logit.as_f64(), host_ctx_);
  ops::sqrt_softplus_backward(dlogit64, dscore.as_f64(), score.as_f64(), host_ctx_);
  // A few roundings of 6e-8 each, and functions that may be off by two units in the last place.
  EXPECT_TRUE(all_near(score.values(), values(score64), 1e-6, 0));
  EXPECT_TRUE(all_near(dlogit.values(), values(dlogit64), 1e-6, 0));
  EXPECT_TRUE(score.margins_untouched());
  EXPECT_TRUE(dlogit.margins_untouched());

  const std::vector<double> scores = score.values(), dlogits = dlogit.values();
  ops::cuda::sqrt_softplus_forward(logit, logit, ctx_);
  ops::cuda::sqrt_softplus_backward(dscore, dscore, score, ctx_);
  EXPECT_EQ(logit.values(), scores);
  EXPECT_EQ(dscore.values(), dlogits);
}

TEST_P(CudaSigmoid, RowSharesEqualTheCpu) {
  OwnedTensor host_score(shape(),
                         DType::f64);  // between 0 and 1, as sigmoids are; of the first of many tokens all 0
  for (std::int64_t i = 0; i < host_score.numel(); ++i)
    set(host_score, i, shape()[0] > 1 && i < shape()[1] ? 0 : static_cast<double>(1 + i % 13) / 16);
  const DeviceTensor score = input(host_score), dprob = normal_TE("dprob"), dscore = normal_TE("dscore"),
                     prob = output();
  const OwnedTensor score64 = score.as_f64(), dscore64 = dscore.as_f64(), prob64(shape(), DType::f64);
  ops::cuda::row_share_forward(prob, score, ctx_);
  ops::cuda::row_share_backward(dscore, dprob, prob, score, ctx_);
  ops::row_share_forward(prob64, score64, host_ctx_);
  ops::row_share_backward(dscore64, dprob.as_f64(), prob.as_f64(), score64, host_ctx_);
  // Sums of up to 515 positive terms, 17 of them in a row; differences of numbers of order one, divided by at
  // least 1/16 (a row of one).
  EXPECT_TRUE(all_near(prob.values(), values(prob64), 1e-6, 0));
  EXPECT_TRUE(all_near(dscore.values(), values(dscore64), 1e-6, 1e-5));
  EXPECT_TRUE(prob.margins_untouched());
  EXPECT_TRUE(dscore.margins_untouched());
}

TEST_P(CudaSigmoid, GatheredSlotsAreTheScores) {
  constexpr std::int64_t kSlots = 3;
  OwnedTensor expert({shape()[0], kSlots}, DType::i32), chosen({shape()[0], kSlots}, DType::f64);
  fill_int(expert, "expert", -1, shape()[1]);
  const DeviceTensor score = normal_TE("score"), device_expert = DeviceTensor::of(expert, ctx_),
                     device_chosen({shape()[0], kSlots}, DType::f32, ctx_);
  ops::cuda::gather_slots(device_chosen, score, device_expert, ctx_);
  ops::gather_slots(chosen, score.as_f64(), expert, host_ctx_);
  EXPECT_EQ(device_chosen.values(), values(chosen));
}

INSTANTIATE_TEST_SUITE_P(Sizes, CudaSigmoid, ::testing::ValuesIn(kSizes));

// A choice is exact: what the CPU says of the same float32 scores.
void expect_choice_of_cpu(const Tensor& score_TE, const Tensor& bias_E, std::int64_t n_group,
                          std::int64_t topk_group, std::int64_t margin = 0) {
  SCOPED_TRACE(::testing::Message() << topk_group << " of " << n_group << " groups");
  DeviceContext ctx;
  Context host_ctx;
  const OwnedTensor choice(score_TE.shape(), DType::f32);
  ops::group_choice(choice, score_TE, bias_E, n_group, topk_group, host_ctx);
  const auto device_choice = DeviceTensor::strided(score_TE.rows(), score_TE.dim(1), DType::f32, ctx);
  ops::cuda::group_choice(device_choice, DeviceTensor::of(score_TE, DType::f32, ctx, margin),
                          DeviceTensor::of(bias_E, ctx), n_group, topk_group, ctx);
  EXPECT_EQ(device_choice.values(), values(choice));
  EXPECT_TRUE(device_choice.margins_untouched());
}

// One group, one expert a group, more groups than a warp has lanes, the most that there may be.
TEST(CudaGroupChoice, EqualsTheCpu) {
  struct {
    std::int64_t tokens, n_experts, n_group, topk_group;
  } const sizes[] = {{3, 5, 1, 1},   {9, 16, 4, 2},  {5, 6, 6, 1},
                     {10, 64, 8, 8}, {3, 80, 40, 7}, {2, 512, 256, 100}};
  for (const auto& s : sizes) {
    const OwnedTensor score = normal({s.tokens, s.n_experts}, DType::f32, "score");
    expect_choice_of_cpu(score, normal({s.n_experts}, DType::f32, "bias", 0.1), s.n_group, s.topk_group, 3);
  }
}

TEST(CudaGroupChoice, OfEqualGroupsTheFirstStay) {
  OwnedTensor score({20, 24}, DType::f32), bias({24}, DType::f32);
  fill_int(score, "few values", 0, 2);
  fill(bias, std::vector<double>(24, 0.25));
  expect_choice_of_cpu(score, bias, 8, 3);
  fill(score, std::vector<double>(20 * 24, 1.0));
  expect_choice_of_cpu(score, bias, 6, 2);
}

}  // namespace
}  // namespace switchyard::test
