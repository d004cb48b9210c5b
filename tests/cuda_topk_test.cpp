#include "ops/slots.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "cuda_support.h"

namespace switchyard::test {
namespace {

struct Sizes {
  std::int64_t tokens, n_experts, slots, margin;  // margin > 0: strided rows
};
// One expert, fewer than a warp has lanes, one more, several a lane, as many slots as experts, more than 32.
const Sizes kSizes[] = {{1, 1, 1, 0},    {9, 8, 2, 0},    {5, 33, 33, 3}, {17, 64, 6, 5},
                        {40, 128, 8, 0}, {3, 512, 64, 0}, {0, 16, 4, 0}};

TEST(CudaSoftmax, EqualsTheCpu) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(::testing::Message() << s.tokens << " x " << s.n_experts);
    DeviceContext ctx;
    Context host_ctx;
    const Shape shape{s.tokens, s.n_experts};
    const auto logit = DeviceTensor::of(normal(shape, DType::f64, "logit", 4.0, 200.0), DType::f32, ctx,
                                        s.margin);  // exp(200) overflows
    const auto dprob = DeviceTensor::of(normal(shape, DType::f64, "dprob"), DType::f32, ctx, s.margin);
    const auto output = [&] {
      return s.margin > 0 ? DeviceTensor::strided(s.tokens, s.n_experts, DType::f32, ctx, s.margin)
                          : DeviceTensor(shape, DType::f32, ctx);
    };
    const DeviceTensor prob = output(), dlogit = output(), lse({s.tokens}, DType::f32, ctx);
    ops::cuda::softmax_forward(prob, lse, logit, ctx);
    ops::cuda::softmax_backward(dlogit, dprob, prob, ctx);
    const OwnedTensor prob64(shape, DType::f64), lse64({s.tokens}, DType::f64), dlogit64(shape, DType::f64);
    ops::softmax_forward(prob64, lse64, logit.as_f64(), host_ctx);
    ops::softmax_backward(dlogit64, dprob.as_f64(), prob.as_f64(), host_ctx);
    // The exponents are up to some 30, each rounded to 6e-8 of that; then sums of up to 512 positive terms.
    EXPECT_TRUE(all_near(prob.values(), values(prob64), 5e-6, 1e-30));
    EXPECT_TRUE(all_near(lse.values(), values(lse64), 1e-6, 1e-6));
    // The mean that is subtracted is of order one: 1e-7 of that, times the probability.
    EXPECT_TRUE(all_near(dlogit.values(), values(dlogit64), 1e-5, 1e-6));
    EXPECT_TRUE(prob.margins_untouched());
    EXPECT_TRUE(dlogit.margins_untouched());

    const std::vector<double> probs = prob.values(), dlogits = dlogit.values();
    ops::cuda::softmax_backward(dprob, dprob, prob, ctx);
    ops::cuda::softmax_forward(logit, lse, logit, ctx);
    EXPECT_EQ(dprob.values(), dlogits);
    EXPECT_EQ(logit.values(), probs);
  }
}

// A choice is exact: the same experts and scores as the CPU's of the same float32 scores.
void expect_choice_of_cpu(const Tensor& score_TE, const Tensor& token_T, std::int64_t slots,
                          std::int64_t margin) {
  DeviceContext ctx;
  Context host_ctx;
  const Shape shape{score_TE.rows(), slots};
  const OwnedTensor expert(shape, DType::i32), chosen(shape, DType::f32);
  ops::top_k(expert, chosen, score_TE, token_T, host_ctx);
  const auto output = [&](DType dtype) {
    return margin > 0 ? DeviceTensor::strided(shape[0], slots, dtype, ctx, margin)
                      : DeviceTensor(shape, dtype, ctx);
  };
  const DeviceTensor device_expert = output(DType::i32), device_chosen = output(DType::f32);
  ops::cuda::top_k(device_expert, device_chosen, DeviceTensor::of(score_TE, DType::f32, ctx, margin),
                   DeviceTensor::of(token_T, ctx), ctx);
  EXPECT_EQ(device_expert.values(), values(expert));
  const std::vector<double> actual = device_chosen.values(), wanted = values(chosen);
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    if (std::isnan(wanted[i]))
      EXPECT_TRUE(std::isnan(actual[i])) << i;
    else
      EXPECT_EQ(actual[i], wanted[i]) << i;
  }
  EXPECT_TRUE(device_expert.margins_untouched());
  EXPECT_TRUE(device_chosen.margins_untouched());
}

TEST(CudaTopK, EqualsTheCpu) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(::testing::Message() << s.tokens << " x " << s.n_experts << ", " << s.slots << " slots");
    OwnedTensor skip({s.tokens}, DType::i32);
    fill_int(skip, "skip", -1, 4);
    expect_choice_of_cpu(normal({s.tokens, s.n_experts}, DType::f32, "score"), skip, s.slots, s.margin);
  }
}

TEST(CudaTopK, EqualScoresGoToTheSmallerExpert) {
  OwnedTensor score({12, 70}, DType::f32), skip({12}, DType::i32);
  fill_int(score, "few values", -2, 3);
  fill(skip, std::vector<double>(12, 0));
  expect_choice_of_cpu(score, skip, 20, 0);
  expect_choice_of_cpu(score, skip, 70, 0);
}

// Zeros of both signs are equal, minus infinity is a number, and NaNs come behind every number by expert.
TEST(CudaTopK, SpecialValues) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN(),
                   kInf = std::numeric_limits<double>::infinity();
  OwnedTensor score({3, 6}, DType::f32);
  fill(score, {-0.0, 0.0, -1, -0.0, 0.0, -2,       //
               kNan, -kInf, kNan, 3, -kInf, kInf,  //
               kNan, kNan, kNan, kNan, kNan, kNan});
  expect_choice_of_cpu(score, ints({0, 0, 0}), 3, 0);
  expect_choice_of_cpu(score, ints({0, 0, 0}), 6, 0);
}

// A tensor of the host is refused in a run on the device, before the backend is chosen, and the other way
// round.
TEST(CudaTopK, RefusesTensorsOfAnotherDevice) {
  DeviceContext ctx;
  Context host_ctx;
  const OwnedTensor score({2, 3}, DType::f32), expert({2, 1}, DType::i32), chosen({2, 1}, DType::f32);
  const OwnedTensor skip({2}, DType::i32);
  const auto there = [&](const OwnedTensor& tensor) { return DeviceTensor::of(tensor, ctx); };
  EXPECT_THROW(ops::top_k(there(expert), there(chosen), score, there(skip), ctx), std::logic_error);
  EXPECT_THROW(ops::top_k(there(expert), chosen, there(score), there(skip), ctx), std::logic_error);
  EXPECT_THROW(ops::top_k(expert, chosen, there(score), skip, host_ctx), std::logic_error);
}

}  // namespace
}  // namespace switchyard::test
