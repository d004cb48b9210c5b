// What lies between a gate and the scores: normalised logits, and the table that chooses in their place.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "gradient_check.h"
#include "ops/slots.h"
#include "poisoned_context.h"
#include "tensors.h"
#include "threads.h"

namespace switchyard::test {
namespace {

using Numbers = std::vector<double>;
constexpr DType kTypes[] = {DType::f32, DType::f64};

struct Sizes {
  std::int64_t tokens, experts;
};
const Sizes kSizes[] = {{1, 1}, {3, 5}, {17, 33}, {257, 129}};

TEST(NormalisedLogits, HaveMeanZeroAndTheScaleForDeviation) {
  for (const DType dtype : kTypes) {
    PoisonedContext ctx;
    const OwnedTensor logit({3, 4}, dtype), unit({3, 4}, dtype), rstd({3}, dtype);
    // Means 2.5, 0 and 7; variances 1.25, 1e4 and none.
    fill(logit, {1, 2, 3, 4, -100, 100, 100, -100, 7, 7, 7, 7});
    ops::normalise_logits_forward(logit, unit, rstd, 3, ctx);
    const double a = 1.5 / std::sqrt(1.25), b = 0.5 / std::sqrt(1.25);
    const double tolerance = dtype == DType::f32 ? 1e-6 : 1e-11;  // the 1e-12 beside a variance of 1.25
    EXPECT_TRUE(all_near(values(unit), {-a, -b, b, a, -1, 1, 1, -1, 0, 0, 0, 0}, tolerance, 0));
    EXPECT_TRUE(
        all_near(values(logit), {-3 * a, -3 * b, 3 * b, 3 * a, -3, 3, 3, -3, 0, 0, 0, 0}, tolerance, 0));
    EXPECT_TRUE(all_near(values(rstd), {1 / std::sqrt(1.25), 0.01, 1e6}, tolerance, 0));
  }
}

TEST(NormalisedLogits, GradientMatchesFiniteDifferences) {
  for (const Sizes& s : kSizes) {
    PoisonedContext ctx;
    const OwnedTensor input = normal_strided(s.tokens, s.experts, DType::f64, "logit", 2.0);
    const OwnedTensor dlogit = normal_strided(s.tokens, s.experts, DType::f64, "dlogit", 1.0, 2);
    const OwnedTensor r = normal_strided(s.tokens, s.experts, DType::f64, "dlogit", 1.0, 2);
    const OwnedTensor logit = OwnedTensor::strided(s.tokens, s.experts, DType::f64, 1),
                      unit = OwnedTensor::strided(s.tokens, s.experts, DType::f64, 3);
    const OwnedTensor rstd({s.tokens}, DType::f64);
    const auto loss = [&] {
      for (std::int64_t i = 0; i < input.numel(); ++i) set(logit, i, input[i]);
      ops::normalise_logits_forward(logit, unit, rstd, 1.7, ctx);
      return dot(r, logit);
    };
    loss();
    ops::normalise_logits_backward(dlogit, unit, rstd, 1.7, ctx);
    // Up to 33,000 terms of order one in the loss: its rounding, 5e-12, over the step of 1e-5.
    EXPECT_TRUE(gradient_matches(input, dlogit, loss, {.absolute = 1e-6, .max_elements = 100})) << s.experts;
    EXPECT_TRUE(dlogit.margins_untouched() && logit.margins_untouched() && unit.margins_untouched());
  }
}

TEST(NormalisedLogits, SameBitsOnAnyThreadCount) {
  PoisonedContext ctx;
  const Shape shape{301, 40};
  const OwnedTensor unit(shape, DType::f32), rstd({301}, DType::f32);
  expect_same_bits_on_any_thread_count([&] {
    OwnedTensor logit = normal(shape, DType::f32, "logit");
    ops::normalise_logits_forward(logit, unit, rstd, 2, ctx);
    return logit;
  });
  expect_same_bits_on_any_thread_count([&] {
    OwnedTensor dlogit = normal(shape, DType::f32, "dlogit");
    ops::normalise_logits_backward(dlogit, unit, rstd, 2, ctx);
    return dlogit;
  });
}

TEST(ExpertsOfTokens, StandInTheTableAndPaddingHasNone) {
  for (const DType dtype : kTypes) {
    PoisonedContext ctx;
    const OwnedTensor table({6}, dtype), expert({4, 2}, DType::i32), token = ints({2, 0, -1, 1}),
                                                                     far = ints({3, 0, 0, 0});
    fill(table, {5, 1, 0, 300, 7, 2});  // of three tokens; a number that bfloat16 has not
    ops::experts_of_tokens(expert, table, token, ctx);
    EXPECT_EQ(values(expert), (Numbers{7, 2, 5, 1, -1, -1, 0, 300}));
    EXPECT_THROW(ops::experts_of_tokens(expert, table, far, ctx), std::logic_error);
  }
}

TEST(Gate, RefusesOtherShapesAndDtypes) {
  PoisonedContext ctx;
  const OwnedTensor a({2, 4}, DType::f32), narrow({2, 3}, DType::f32), d({2, 4}, DType::f64),
      t({2}, DType::f32), t3({3}, DType::f32), table({5}, DType::f32), expert({2, 2}, DType::i32),
      token = ints({0, 0});
  for (const OwnedTensor* other : {&narrow, &d}) {
    EXPECT_THROW(ops::normalise_logits_forward(a, *other, t, 1, ctx), std::logic_error);
    EXPECT_THROW(ops::normalise_logits_backward(a, *other, t, 1, ctx), std::logic_error);
  }
  EXPECT_THROW(ops::normalise_logits_forward(a, a, t3, 1, ctx), std::logic_error);
  EXPECT_THROW(ops::normalise_logits_backward(a, a, t3, 1, ctx), std::logic_error);
  EXPECT_THROW(ops::experts_of_tokens(expert, table, token, ctx), std::logic_error);
  EXPECT_THROW(ops::experts_of_tokens(a, table, token, ctx), std::logic_error);
}

}  // namespace
}  // namespace switchyard::test
