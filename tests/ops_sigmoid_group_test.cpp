#include "ops/sigmoid_group.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "gradient_check.h"
#include "ops/slots.h"
#include "poisoned_context.h"
#include "tensors.h"
#include "threads.h"

namespace switchyard::test {
namespace {

using Numbers = std::vector<double>;
constexpr double kDropped = -std::numeric_limits<double>::infinity();
constexpr DType kTypes[] = {DType::f32, DType::f64};

struct Sizes {
  std::int64_t tokens, experts;
};
const Sizes kSizes[] = {{1, 1}, {3, 5}, {17, 33}, {257, 129}};

TEST(Sigmoid, FollowsTheDefinitionAlsoFarOut) {
  const Numbers logits = {0, 1, -1, 10, -10, 80, -80, 1000, -1000, -1e30, 1e30};
  for (const DType dtype : kTypes) {
    PoisonedContext ctx;
    const OwnedTensor score({1, static_cast<std::int64_t>(logits.size())}, dtype),
        logit(score.view().shape(), dtype);
    fill(logit, logits);
    ops::sigmoid_forward(score, logit, ctx);
    for (std::size_t i = 0; i < logits.size(); ++i) {
      const double exact = 1 / (1 + std::exp(-logits[i])), got = score[static_cast<std::int64_t>(i)];
      // An exponential of a few units in the last place, a sum and a quotient; below float's smallest normal
      // number, 1.2e-38, nothing but zero is promised.
      EXPECT_NEAR(got, exact, (dtype == DType::f32 ? 5e-7 : 1e-14) * exact + 1.2e-38) << logits[i];
    }
    ops::sigmoid_forward(logit, logit, ctx);
    EXPECT_TRUE(same_bits(logit, score));
  }
}

TEST(Sigmoid, GradientMatchesFiniteDifferences) {
  for (const Sizes& s : kSizes) {
    PoisonedContext ctx;
    const OwnedTensor logit = normal_strided(s.tokens, s.experts, DType::f64, "logit", 2.0);
    const OwnedTensor dscore = normal_strided(s.tokens, s.experts, DType::f64, "dscore", 1.0, 2);
    const OwnedTensor score = OwnedTensor::strided(s.tokens, s.experts, DType::f64, 1);
    const OwnedTensor dlogit = OwnedTensor::strided(s.tokens, s.experts, DType::f64, 3);
    const auto loss = [&] {
      ops::sigmoid_forward(score, logit, ctx);
      return dot(dscore, score);
    };
    loss();
    ops::sigmoid_backward(dlogit, dscore, score, ctx);
    // Up to 33,000 terms of order one in the loss: its rounding, 5e-12, over the step of 1e-5.
    EXPECT_TRUE(gradient_matches(logit, dlogit, loss, {.absolute = 1e-6, .max_elements = 100})) << s.experts;
    EXPECT_TRUE(dlogit.margins_untouched() && score.margins_untouched());
    loss();  // at the logits as they were
    ops::sigmoid_backward(dscore, dscore, score, ctx);
    EXPECT_TRUE(same_bits(dscore, dlogit));
  }
}

TEST(SqrtSoftplus, FollowsTheDefinitionAlsoFarOut) {
  const Numbers logits = {0, 1, -1, 10, -10, 80, -80, 1000, -1000, 1e30, -1e30};
  for (const DType dtype : kTypes) {
    PoisonedContext ctx;
    const OwnedTensor score({1, static_cast<std::int64_t>(logits.size())}, dtype),
        logit(score.view().shape(), dtype);
    fill(logit, logits);
    ops::sqrt_softplus_forward(score, logit, ctx);
    for (std::size_t i = 0; i < logits.size(); ++i) {
      const double x = logits[i];
      const double exact = std::sqrt(std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))));
      // An exponential and a logarithm of a few units in the last place; below float's smallest normal number,
      // whose root is 1.1e-19, nothing but zero is promised.
      EXPECT_NEAR(score[static_cast<std::int64_t>(i)], exact,
                  (dtype == DType::f32 ? 5e-7 : 1e-14) * exact + 1.1e-19)
          << x;
    }
    ops::sqrt_softplus_forward(logit, logit, ctx);
    EXPECT_TRUE(same_bits(logit, score));
  }
}

TEST(SqrtSoftplus, GradientMatchesFiniteDifferences) {
  for (const Sizes& s : kSizes) {
    PoisonedContext ctx;
    const OwnedTensor logit = normal_strided(s.tokens, s.experts, DType::f64, "logit", 4.0);
    const OwnedTensor dscore = normal_strided(s.tokens, s.experts, DType::f64, "dscore", 1.0, 2);
    const OwnedTensor score = OwnedTensor::strided(s.tokens, s.experts, DType::f64, 1);
    const OwnedTensor dlogit = OwnedTensor::strided(s.tokens, s.experts, DType::f64, 3);
    const auto loss = [&] {
      ops::sqrt_softplus_forward(score, logit, ctx);
      return dot(dscore, score);
    };
    loss();
    ops::sqrt_softplus_backward(dlogit, dscore, score, ctx);
    // As of the sigmoid.
    EXPECT_TRUE(gradient_matches(logit, dlogit, loss, {.absolute = 1e-6, .max_elements = 100})) << s.experts;
    EXPECT_TRUE(dlogit.margins_untouched() && score.margins_untouched());
    loss();
    ops::sqrt_softplus_backward(dscore, dscore, score, ctx);
    EXPECT_TRUE(same_bits(dscore, dlogit));
  }
}

// (1 - exp(-s^2)) / (2 s), also where the difference is nearly nothing or nearly 1.
TEST(SqrtSoftplus, ItsSlopeIsPreciseInFloat32) {
  PoisonedContext ctx;
  const Numbers scores = {0, 1e-19, 1e-6, 2e-4, 0.01, 0.3, 0.83, 0.84, 1, 4, 20, 1e15};
  const OwnedTensor score({1, static_cast<std::int64_t>(scores.size())}, DType::f32),
      one(score.view().shape(), DType::f32), slope(score.view().shape(), DType::f32);
  fill(score, scores);
  fill(one, Numbers(scores.size(), 1));
  ops::sqrt_softplus_backward(slope, one, score, ctx);
  for (std::size_t i = 0; i < scores.size(); ++i) {
    const double s = score[static_cast<std::int64_t>(i)], exact = s > 0 ? -std::expm1(-s * s) / (2 * s) : 0;
    // Of the rounded exponential u the quotient (1 - u) / log(u) is that of numbers of a few roundings each;
    // the root of what is below float's smallest normal number has the slope that it rounds to.
    EXPECT_NEAR(slope[static_cast<std::int64_t>(i)], exact, 6e-7 * exact) << s;
  }
}

struct Choice {
  std::int64_t n_group, topk_group;
  Numbers score, bias, expected;
};

void expect_choice(const Choice& c) {
  for (const DType dtype : kTypes) {  // sums of eighths: exact in both
    PoisonedContext ctx;
    const auto E = static_cast<std::int64_t>(c.score.size());
    const OwnedTensor score({1, E}, dtype), bias({E}, dtype), choice({1, E}, dtype);
    fill(score, c.score);
    fill(bias, c.bias);
    ops::group_choice(choice, score, bias, c.n_group, c.topk_group, ctx);
    EXPECT_EQ(values(choice), c.expected);
  }
}

TEST(GroupChoice, TheBestGroupsByTheirTwoBestStay) {
  // Group 0 has the single best expert, group 2 the best pair of all, group 1 the next.
  expect_choice({3,
                 2,
                 {0.875, 0, 0, 0.5, 0.5, 0.125, 0.75, 0.5, 0.25},
                 Numbers(9, 0),
                 {kDropped, kDropped, kDropped, 0.5, 0.5, 0.125, 0.75, 0.5, 0.25}});
}

TEST(GroupChoice, TheBiasChoosesAGroup) {
  expect_choice({2, 1, {0.75, 0.75, 0.25, 0.25}, {0, 0, 0.5, 0.625}, {kDropped, kDropped, 0.75, 0.875}});
}

// Were a dropped group filled with zeros, its experts would be above all that stay.
TEST(GroupChoice, OfNegativeSumsADroppedGroupIsStillLast) {
  const Choice c{2, 1, {0.5, 0.25, 0.125, 0.25}, Numbers(4, -2), {-1.5, -1.75, kDropped, kDropped}};
  expect_choice(c);
  PoisonedContext ctx;
  const OwnedTensor choice({1, 4}, DType::f32), expert({1, 2}, DType::i32), chosen({1, 2}, DType::f32);
  fill(choice, c.expected);
  ops::top_k(expert, chosen, choice, ints({0}), ctx);
  EXPECT_EQ(values(expert), (Numbers{0, 1}));
}

TEST(GroupChoice, OfEqualGroupsTheFirstStay) {
  expect_choice(
      {4, 2, Numbers(8, 0.5), Numbers(8, 0), {0.5, 0.5, 0.5, 0.5, kDropped, kDropped, kDropped, kDropped}});
  // Equal ones behind a better one.
  expect_choice({3,
                 2,
                 {0.25, 0.5, 0.5, 0.25, 0.75, 0.75},
                 Numbers(6, 0),  //
                 {0.25, 0.5, kDropped, kDropped, 0.75, 0.75}});
}

TEST(GroupChoice, ASingleGroupAndAllGroupsAreNoRestriction) {
  const Numbers score = {0.5, 0.125, 0.25, 0.75}, bias = {0, 1, -1, 0}, sum = {0.5, 1.125, -0.75, 0.75};
  expect_choice({1, 1, score, bias, sum});
  expect_choice({2, 2, score, bias, sum});
}

TEST(GroupChoice, AGroupOfOneExpertCountsThatOne) {
  expect_choice({4, 2, {0.5, 0.125, 0.25, 0.75}, Numbers(4, 0), {0.5, kDropped, kDropped, 0.75}});
}

// By sorting, for every token of a larger batch.
TEST(GroupChoice, FollowsTheDefinition) {
  constexpr std::int64_t kTokens = 37, kGroups = 7, kSize = 5, kStay = 3, kExperts = kGroups * kSize;
  for (const DType dtype : kTypes) {
    PoisonedContext ctx;
    const OwnedTensor score = normal_strided(kTokens, kExperts, dtype, "score"),
                      bias = normal({kExperts}, dtype, "b");
    const OwnedTensor choice = OwnedTensor::strided(kTokens, kExperts, dtype, 2);
    ops::group_choice(choice, score, bias, kGroups, kStay, ctx);
    EXPECT_TRUE(choice.margins_untouched());
    for (std::int64_t t = 0; t < kTokens; ++t) {
      std::vector<std::pair<double, std::int64_t>> groups;
      const auto sum = [&](std::int64_t e) {  // in the compute type, as the operator's
        const double exact = score[t * kExperts + e] + bias[e];
        return dtype == DType::f32 ? static_cast<double>(static_cast<float>(exact)) : exact;
      };
      for (std::int64_t g = 0; g < kGroups; ++g) {
        Numbers sums;
        for (std::int64_t e = g * kSize; e < (g + 1) * kSize; ++e) sums.push_back(sum(e));
        std::sort(sums.rbegin(), sums.rend());
        groups.emplace_back(-(sums[0] + sums[1]), g);
      }
      std::sort(groups.begin(), groups.end());
      for (std::int64_t rank = 0; rank < kGroups; ++rank) {
        const std::int64_t g = groups[static_cast<std::size_t>(rank)].second;
        for (std::int64_t e = g * kSize; e < (g + 1) * kSize; ++e)
          EXPECT_EQ(choice[t * kExperts + e], rank < kStay ? sum(e) : kDropped) << "token " << t;
      }
    }
  }
}

TEST(GatherSlots, ByHand) {
  PoisonedContext ctx;
  const OwnedTensor score({2, 3}, DType::f32), expert({2, 2}, DType::i32), chosen({2, 2}, DType::f32);
  fill(score, {1, 2, 3, 4, 5, 6});
  fill(expert, {2, 0, -1, 1});
  ops::gather_slots(chosen, score, expert, ctx);
  EXPECT_EQ(values(chosen), (Numbers{3, 1, 0, 5}));
}

TEST(RowShare, ByHand) {
  for (const DType dtype : kTypes) {  // powers of two: exact in both
    PoisonedContext ctx;
    const OwnedTensor score({3, 2}, dtype), prob({3, 2}, dtype), dprob({3, 2}, dtype), dscore({3, 2}, dtype);
    fill(score, {1, 3, 0.5, 0, 0, 0});
    ops::row_share_forward(prob, score, ctx);
    EXPECT_EQ(values(prob), (Numbers{0.25, 0.75, 1, 0, 0, 0}));
    fill(dprob, {8, 16, 1, 2, 0, 0});
    fill(dscore, {100, 100, 100, 100, 100, 100});
    ops::row_share_backward(dscore, dprob, prob, score, ctx);
    // Row 0: sum_e dprob prob = 14, the sum of the scores 4; row 1: 1 and 1/2; row 2 has no scores and no
    // gradient.
    EXPECT_EQ(values(dscore), (Numbers{100 - 1.5, 100.5, 100, 102, 100, 100}));
  }
}

TEST(RowShare, GradientMatchesFiniteDifferences) {
  for (const Sizes& s : kSizes) {
    PoisonedContext ctx;
    const OwnedTensor score = normal_strided(s.tokens, s.experts, DType::f64, "score");
    for (std::int64_t i = 0; i < score.numel(); ++i) set(score, i, 1 / (1 + std::exp(-score[i])));
    const OwnedTensor dprob = normal_strided(s.tokens, s.experts, DType::f64, "dprob", 1.0, 2);
    const OwnedTensor prob = OwnedTensor::strided(s.tokens, s.experts, DType::f64, 1);
    const OwnedTensor dscore = normal_strided(s.tokens, s.experts, DType::f64, "dscore", 1.0, 3);
    const Numbers before = values(dscore);
    const auto loss = [&] {
      ops::row_share_forward(prob, score, ctx);
      return dot(dprob, prob);
    };
    loss();
    ops::row_share_backward(dscore, dprob, prob, score, ctx);
    EXPECT_TRUE(gradient_matches(score, difference(values(dscore), before), loss, {.max_elements = 100}))
        << s.experts;
    EXPECT_TRUE(dscore.margins_untouched() && prob.margins_untouched());
  }
}

TEST(SigmoidGroup, SameBitsOnAnyThreadCount) {
  PoisonedContext ctx;
  constexpr std::int64_t kTokens = 301, kExperts = 40;
  const OwnedTensor logit = normal({kTokens, kExperts}, DType::f32, "logit"),
                    bias = normal({kExperts}, DType::f32, "b");
  const OwnedTensor dprob = normal({kTokens, kExperts}, DType::f32, "dprob");
  const auto out = [&](auto&& compute) {
    expect_same_bits_on_any_thread_count([&] {
      OwnedTensor result = normal({kTokens, kExperts}, DType::f32, "result");
      compute(result);
      return result;
    });
  };
  const OwnedTensor score({kTokens, kExperts}, DType::f32), prob({kTokens, kExperts}, DType::f32);
  ops::sigmoid_forward(score, logit, ctx);
  ops::row_share_forward(prob, score, ctx);
  out([&](const Tensor& t) { ops::sigmoid_forward(t, logit, ctx); });
  out([&](const Tensor& t) { ops::sigmoid_backward(t, dprob, score, ctx); });
  out([&](const Tensor& t) { ops::sqrt_softplus_forward(t, logit, ctx); });
  out([&](const Tensor& t) { ops::sqrt_softplus_backward(t, dprob, score, ctx); });
  out([&](const Tensor& t) { ops::group_choice(t, score, bias, 8, 3, ctx); });
  out([&](const Tensor& t) { ops::row_share_forward(t, score, ctx); });
  out([&](const Tensor& t) { ops::row_share_backward(t, dprob, prob, score, ctx); });
}

TEST(SigmoidGroup, RefusesOtherShapesAndDtypes) {
  PoisonedContext ctx;
  const OwnedTensor a({2, 4}, DType::f32), narrow({2, 3}, DType::f32), d({2, 4}, DType::f64);
  const OwnedTensor bias({4}, DType::f32), bias3({3}, DType::f32), bias64({4}, DType::f64);
  const OwnedTensor expert({2, 2}, DType::i32), chosen({2, 2}, DType::f32), expert3({3, 2}, DType::i32);
  for (const OwnedTensor* other : {&narrow, &d}) {
    EXPECT_THROW(ops::sigmoid_forward(*other, a, ctx), std::logic_error);
    EXPECT_THROW(ops::sigmoid_backward(*other, a, a, ctx), std::logic_error);
    EXPECT_THROW(ops::sigmoid_backward(a, *other, a, ctx), std::logic_error);
    EXPECT_THROW(ops::sqrt_softplus_forward(*other, a, ctx), std::logic_error);
    EXPECT_THROW(ops::sqrt_softplus_backward(*other, a, a, ctx), std::logic_error);
    EXPECT_THROW(ops::sqrt_softplus_backward(a, *other, a, ctx), std::logic_error);
    EXPECT_THROW(ops::group_choice(*other, a, bias, 2, 1, ctx), std::logic_error);
    EXPECT_THROW(ops::row_share_forward(*other, a, ctx), std::logic_error);
    EXPECT_THROW(ops::row_share_backward(*other, a, a, a, ctx), std::logic_error);
    EXPECT_THROW(ops::row_share_backward(a, *other, a, a, ctx), std::logic_error);
    EXPECT_THROW(ops::row_share_backward(a, a, *other, a, ctx), std::logic_error);
  }
  EXPECT_THROW(ops::group_choice(a, a, bias3, 2, 1, ctx), std::logic_error);
  EXPECT_THROW(ops::group_choice(a, a, bias64, 2, 1, ctx), std::logic_error);
  EXPECT_THROW(ops::group_choice(a, a, bias, 3, 1, ctx), std::logic_error);
  EXPECT_THROW(ops::group_choice(a, a, bias, 2, 3, ctx), std::logic_error);
  EXPECT_THROW(ops::gather_slots(a, a, expert, ctx), std::logic_error);
  EXPECT_THROW(ops::gather_slots(chosen, d, expert, ctx), std::logic_error);
  EXPECT_THROW(ops::gather_slots(chosen, a, chosen, ctx), std::logic_error);
  EXPECT_THROW(ops::gather_slots(chosen, a, expert3, ctx), std::logic_error);
}

}  // namespace
}  // namespace switchyard::test
