#include "ops/slots.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>

#include "gradient_check.h"
#include "tensors.h"
#include "threads.h"

namespace switchyard::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

TEST(Softmax, TwoExpertsByHand) {
  Context ctx;
  OwnedTensor logit({1, 2}, DType::f64), dprob({1, 2}, DType::f64);
  const OwnedTensor prob({1, 2}, DType::f64), lse({1}, DType::f64), dlogit({1, 2}, DType::f64);
  fill(logit, {0, std::log(3.0)});
  ops::softmax_forward(prob, lse, logit, ctx);
  EXPECT_TRUE(all_near(values(prob), {0.25, 0.75}, 1e-15, 0));
  EXPECT_NEAR(lse[0], std::log(4.0), 1e-15);
  fill(dprob, {4, 8});  // sum_e dprob prob = 7
  ops::softmax_backward(dlogit, dprob, prob, ctx);
  EXPECT_TRUE(all_near(values(dlogit), {0.25 * -3, 0.75 * 1}, 1e-14, 0));
}

TEST(Softmax, LargeAndMaskedLogits) {
  Context ctx;
  OwnedTensor logit({2, 3}, DType::f32), prob({2, 3}, DType::f32);
  const OwnedTensor lse({2}, DType::f32);
  fill(logit, {1000, 1000, -1000, -5000, -kInfinity, -5000});
  ops::softmax_forward(prob, lse, logit, ctx);
  EXPECT_EQ(values(prob), (std::vector<double>{0.5, 0.5, 0, 0.5, 0, 0.5}));
  // ln 2 beside 1000 and 5000, rounded to float.
  EXPECT_TRUE(all_near(values(lse), {1000 + std::log(2.0), -5000 + std::log(2.0)}, 6e-8, 0));
}

TEST(Softmax, NanSpreadsOverItsRowOnly) {
  Context ctx;
  OwnedTensor logit({2, 2}, DType::f32);
  const OwnedTensor lse({2}, DType::f32);
  fill(logit, {1, kNan, 0, 0});
  ops::softmax_forward(logit, lse, logit, ctx);
  EXPECT_TRUE(std::isnan(logit[0]) && std::isnan(logit[1]) && std::isnan(lse[0]));
  EXPECT_EQ(logit[2], 0.5);
}

const std::int64_t kExperts[] = {1, 3, 17, 33, 129};

TEST(Softmax, GradientMatchesFiniteDifferences) {
  for (std::int64_t experts : kExperts) {
    Context ctx;
    const OwnedTensor logit = normal_strided(4, experts, DType::f64, "logit");
    const OwnedTensor dprob = normal_strided(4, experts, DType::f64, "dprob", 1.0, 2);
    const OwnedTensor prob = OwnedTensor::strided(4, experts, DType::f64, 1), lse({4}, DType::f64);
    const auto loss = [&] {
      ops::softmax_forward(prob, lse, logit, ctx);
      return dot(dprob, prob);
    };
    loss();
    const OwnedTensor dlogit = OwnedTensor::strided(4, experts, DType::f64, 3);  // NaN until set
    ops::softmax_backward(dlogit, dprob, prob, ctx);
    EXPECT_TRUE(gradient_matches(logit, dlogit, loss)) << experts << " experts";
    EXPECT_TRUE(prob.margins_untouched());
    EXPECT_TRUE(dlogit.margins_untouched());
    // The gradient of lse is the probabilities themselves.
    const auto lse_sum = [&] {
      ops::softmax_forward(prob, lse, logit, ctx);
      return lse[0] + lse[1] + lse[2] + lse[3];
    };
    lse_sum();  // the last loss above was of a moved logit
    EXPECT_TRUE(gradient_matches(logit, values(prob), lse_sum)) << experts << " experts";
  }
}

TEST(Softmax, FloatFollowsDoubleAlsoInPlace) {
  for (std::int64_t experts : kExperts) {
    Context ctx;
    std::vector<std::vector<double>> prob_values, lse_values, dlogit_values;
    for (DType dtype : {DType::f32, DType::f64}) {
      const OwnedTensor logit = normal({9, experts}, dtype, "logit", 3.0),
                        dprob = normal({9, experts}, dtype, "dprob");
      const OwnedTensor lse({9}, dtype);
      ops::softmax_forward(logit, lse, logit, ctx);
      ops::softmax_backward(dprob, dprob, logit, ctx);
      prob_values.push_back(values(logit));
      lse_values.push_back(values(lse));
      dlogit_values.push_back(values(dprob));
    }
    // Logits of up to 10, rounded to 6e-8 of that, pass their absolute error on as a relative one, twice (the
    // largest is subtracted).
    EXPECT_TRUE(all_near(prob_values[0], prob_values[1], 2e-6, 0)) << experts << " experts";
    EXPECT_TRUE(all_near(lse_values[0], lse_values[1], 6e-7, 6e-7)) << experts << " experts";
    EXPECT_TRUE(all_near(dlogit_values[0], dlogit_values[1], 2e-6, 2e-6)) << experts << " experts";
  }
}

TEST(Softmax, SameBitsOnAnyThreadCount) {
  Context ctx;
  const OwnedTensor logit = normal({301, 129}, DType::f32, "logit"),
                    dprob = normal({301, 129}, DType::f32, "dprob");
  OwnedTensor lse({301}, DType::f32);
  expect_same_bits_on_any_thread_count([&] {
    OwnedTensor prob({301, 129}, DType::f32), dlogit({301, 129}, DType::f32);
    ops::softmax_forward(prob, lse, logit, ctx);
    ops::softmax_backward(dlogit, dprob, prob, ctx);
    return dlogit;
  });
}

struct Choice {
  OwnedTensor expert, chosen;
  Choice(const Tensor& score, std::int64_t slots, const Tensor& skip)
      : expert(OwnedTensor::strided(score.rows(), slots, DType::i32)),
        chosen(OwnedTensor::strided(score.rows(), slots, score.dtype())) {
    Context ctx;
    ops::top_k(expert, chosen, score, skip, ctx);
    EXPECT_TRUE(expert.margins_untouched());
    EXPECT_TRUE(chosen.margins_untouched());
  }
};

TEST(TopK, DescendingWithTiesByAscendingExpert) {
  OwnedTensor score({2, 5}, DType::f32);
  fill(score, {1, 3, 2, 3, 0,  //
               7, 7, 7, 7, 7});
  const Choice choice(score, 3, ints({0, 5}));
  EXPECT_EQ(values(choice.expert), (std::vector<double>{1, 3, 2, 0, 1, 2}));
  EXPECT_EQ(values(choice.chosen), (std::vector<double>{3, 3, 2, 7, 7, 7}));
}

TEST(TopK, PaddingLeavesAllSlotsFree) {
  OwnedTensor score({2, 3}, DType::f32);
  fill(score, {kNan, 1, 2, 4, 5, 6});
  const Choice choice(score, 2, ints({-1, 0}));
  EXPECT_EQ(values(choice.expert), (std::vector<double>{-1, -1, 2, 1}));
  EXPECT_EQ(values(choice.chosen), (std::vector<double>{0, 0, 6, 5}));
}

TEST(TopK, NanComesAfterEveryNumber) {
  for (DType dtype : {DType::f32, DType::f64}) {
    OwnedTensor score({3, 4}, dtype);
    fill(score, {kNan, -kInfinity, kNan, 1,  //
                 kNan, kNan, kNan, kNan,     //
                 kInfinity, kNan, -1, -2});
    const Choice choice(score, 3, ints({0, 0, 0}));
    EXPECT_EQ(values(choice.expert), (std::vector<double>{3, 1, 0, 0, 1, 2, 0, 2, 3}));
    EXPECT_EQ(choice.chosen[0], 1);
    EXPECT_EQ(choice.chosen[1], -kInfinity);
    for (std::int64_t i = 2; i < 6; ++i) EXPECT_TRUE(std::isnan(choice.chosen[i]));
  }
}

// Scores in steps of a half, so that many are equal, against a stable sort.
TEST(TopK, AgreesWithAStableSort) {
  for (DType dtype : {DType::f32, DType::f64}) {
    for (std::int64_t experts : {1, 3, 17, 33, 129, 512}) {
      for (std::int64_t slots : {1, 2, 8, 32, 512}) {
        if (slots > experts) continue;
        const OwnedTensor score = normal_strided(9, experts, dtype, "score");
        for (std::int64_t i = 0; i < score.numel(); ++i) set(score, i, std::round(score[i] * 2) / 2);
        const OwnedTensor skip({9}, DType::i32);
        fill_int(skip, "skip", -1, 3);
        const Choice choice(score, slots, skip);
        for (std::int64_t t = 0; t < 9; ++t) {
          std::vector<std::int64_t> order(static_cast<std::size_t>(experts));
          std::iota(order.begin(), order.end(), 0);
          std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
            return score[t * experts + a] > score[t * experts + b];
          });
          for (std::int64_t k = 0; k < slots; ++k) {
            const std::int64_t e = order[static_cast<std::size_t>(k)];
            const bool free = skip[t] < 0;
            ASSERT_EQ(choice.expert[t * slots + k], free ? -1.0 : static_cast<double>(e))
                << experts << " experts";
            ASSERT_EQ(choice.chosen[t * slots + k], free ? 0.0 : score[t * experts + e])
                << experts << " experts";
          }
        }
      }
    }
  }
}

// Whole groups of tokens go side by side, the others one by one: a group against each of its tokens alone.
TEST(TopK, TokensSideBySideAsOneByOne) {
  constexpr std::int64_t kTokens = 16;
  const double odd[] = {kNan, kInfinity, -kInfinity, 0.0, -0.0, 1e-45, -1e-45, 1e30};
  const OwnedTensor skip = ints(std::vector<double>(kTokens, 0));
  for (DType dtype : {DType::f32, DType::f64}) {
    for (std::int64_t slots = 1; slots <= 17; ++slots) {
      const std::int64_t experts = slots % 2 == 0 ? 33 : 70;  // not whole blocks of experts
      const OwnedTensor score = normal_strided(kTokens, experts, dtype, "score");
      for (std::int64_t i = 0; i < score.numel(); ++i)
        set(score, i, i % 3 == 0 ? odd[i / 3 % 8] : std::round(score[i] * 2) / 2);
      for (std::int64_t e = 0; e < experts; ++e) set(score, 5 * experts + e, kNan);
      const Choice together(score, slots, skip);
      for (std::int64_t t = 0; t < kTokens; ++t) {
        const Choice alone(score.view().slice(t, 1), slots, ints({0}));
        for (std::int64_t k = 0; k < slots; ++k) {
          ASSERT_EQ(together.expert[t * slots + k], alone.expert[k]) << "token " << t << ", slot " << k;
          const double a = together.chosen[t * slots + k], b = alone.chosen[k];
          ASSERT_EQ(std::bit_cast<std::uint64_t>(a), std::bit_cast<std::uint64_t>(b)) << a << ", not " << b;
        }
      }
    }
  }
}

TEST(TopK, SameBitsOnAnyThreadCount) {
  const OwnedTensor score = normal({301, 129}, DType::f32, "score"), skip({301}, DType::i32);
  fill_int(skip, "skip", -1, 3);
  expect_same_bits_on_any_thread_count([&] { return std::move(Choice(score, 8, skip).expert); });
}

TEST(TopK, RefusesOtherShapesAndDtypes) {
  Context ctx;
  const OwnedTensor score({2, 4}, DType::f32), expert({2, 3}, DType::i32), chosen({2, 3}, DType::f32);
  const OwnedTensor skip({2}, DType::i32), skip3({3}, DType::i32), chosen64({2, 3}, DType::f64);
  const OwnedTensor five({2, 5}, DType::i32), five_chosen({2, 5}, DType::f32), lse({2}, DType::f32);
  EXPECT_THROW(ops::top_k(five, five_chosen, score, skip, ctx), std::logic_error);  // K > E
  EXPECT_THROW(ops::top_k(expert, chosen64, score, skip, ctx), std::logic_error);
  EXPECT_THROW(ops::top_k(chosen, chosen, score, skip, ctx), std::logic_error);
  EXPECT_THROW(ops::top_k(expert, chosen, score, skip3, ctx), std::logic_error);
  EXPECT_THROW(ops::softmax_forward(chosen, lse, score, ctx), std::logic_error);
  EXPECT_THROW(ops::softmax_forward(score, OwnedTensor({4}, DType::f32), score, ctx), std::logic_error);
  EXPECT_THROW(ops::softmax_backward(score, chosen, score, ctx), std::logic_error);
}

}  // namespace
}  // namespace switchyard::test
