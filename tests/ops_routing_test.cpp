#include "ops/routing.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gradient_check.h"
#include "ops/slots.h"
#include "poisoned_context.h"
#include "rounding_bound.h"
#include "tensors.h"
#include "threads.h"

namespace switchyard::test {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

TEST(SlotWeights, TwoTokensByHand) {
  for (DType dtype : {DType::f32, DType::f64}) {  // powers of two: exact in both
    PoisonedContext ctx;
    OwnedTensor chosen({3, 2}, dtype), expert({3, 2}, DType::i32), dweight({3, 2}, dtype);
    const OwnedTensor weight({3, 2}, dtype), dscore({3, 3}, dtype);
    fill(expert, {2, 0, -1, 1, -1, -1});
    fill(chosen, {0.375, 0.125, kNan, 0.25, kNan, kNan});
    ops::slot_weights_forward(weight, chosen, expert, {.normalise = true}, ctx);
    EXPECT_EQ(values(weight), (std::vector<double>{0.75, 0.25, 0, 1, 0, 0}));
    fill(dweight, {4, 8, kNan, 16, kNan, kNan});
    // Token 0: sum_j dweight_j weight_j = 5, the sum of the chosen 1/2. A single expert's weight is always 1.
    ops::slot_weights_backward(dscore, dweight, weight, chosen, expert, {.normalise = true}, ctx);
    EXPECT_EQ(values(dscore), (std::vector<double>{6, 0, -2, 0, 0, 0, 0, 0, 0}));

    poison(weight), poison(dscore);
    ops::slot_weights_forward(weight, chosen, expert, {}, ctx);
    EXPECT_EQ(values(weight), (std::vector<double>{0.375, 0.125, 0, 0.25, 0, 0}));
    ops::slot_weights_backward(dscore, dweight, weight, chosen, expert, {}, ctx);
    EXPECT_EQ(values(dscore), (std::vector<double>{8, 0, 4, 0, 16, 0, 0, 0, 0}));
  }
}

TEST(SlotWeights, ScaleAndEpsilonByHand) {
  for (DType dtype : {DType::f32, DType::f64}) {  // powers of two: exact in both
    PoisonedContext ctx;
    OwnedTensor chosen({2, 2}, dtype), expert({2, 2}, DType::i32), dweight({2, 2}, dtype);
    const OwnedTensor weight({2, 2}, dtype), dscore({2, 2}, dtype);
    fill(expert, {1, 0, 0, -1});
    fill(chosen, {0.375, 0.125, 0.5, kNan});
    fill(dweight, {4, 8, 2, kNan});
    const ops::SlotWeighting whole{.normalise = true, .scale = 2.0, .eps = 0.5};
    ops::slot_weights_forward(weight, chosen, expert, whole, ctx);
    EXPECT_EQ(values(weight), (std::vector<double>{0.75, 0.25, 1, 0}));
    ops::slot_weights_backward(dscore, dweight, weight, chosen, expert, whole, ctx);
    // Token 0: sum_j dweight_j weight_j = 5, the divisor 1. Token 1: (2 * 2 - 2 * 1) / 1: with an epsilon the
    // weight of a single expert still grows with its score.
    EXPECT_EQ(values(dscore), (std::vector<double>{16 - 5, 8 - 5, 2, 0}));

    const ops::SlotWeighting scaled{.scale = 2.0, .eps = 0.5};  // nothing is divided
    ops::slot_weights_forward(weight, chosen, expert, scaled, ctx);
    EXPECT_EQ(values(weight), (std::vector<double>{0.75, 0.25, 1, 0}));
    ops::slot_weights_backward(dscore, dweight, weight, chosen, expert, scaled, ctx);
    EXPECT_EQ(values(dscore), (std::vector<double>{16, 8, 4, 0}));
  }
}

// Of any score: a weight of 0.99999994 would be dropped before others where an expert's capacity decides.
TEST(SlotWeights, OneExpertAloneHasExactlyTheScale) {
  constexpr std::int64_t T = 1000;
  PoisonedContext ctx;
  OwnedTensor chosen({T, 2}, DType::f32), expert({T, 2}, DType::i32);
  const OwnedTensor weight({T, 2}, DType::f32);
  std::vector<double> scores, experts;
  for (std::int64_t t = 0; t < T; ++t) {
    scores.insert(scores.end(), {0.3 + 0.0007 * static_cast<double>(t), kNan});
    experts.insert(experts.end(), {1, -1});
  }
  fill(chosen, scores);
  fill(expert, experts);
  ops::slot_weights_forward(weight, chosen, expert, {.normalise = true}, ctx);
  for (std::int64_t t = 0; t < T; ++t) EXPECT_EQ(values(weight)[static_cast<std::size_t>(2 * t)], 1.0);
}

// Scores that all underflow: the epsilon keeps 0/0 away.
TEST(SlotWeights, OfZeroScoresAreZeroWithAnEpsilon) {
  PoisonedContext ctx;
  OwnedTensor chosen({1, 2}, DType::f32), expert({1, 2}, DType::i32);
  const OwnedTensor weight({1, 2}, DType::f32);
  fill(expert, {0, 1});
  fill(chosen, {0, 0});
  ops::slot_weights_forward(weight, chosen, expert, {.normalise = true, .scale = 2.5, .eps = 1e-20}, ctx);
  EXPECT_EQ(values(weight), (std::vector<double>{0, 0}));
}

struct Sizes {
  std::int64_t n_seq, seq_len, n_experts, slots;
  std::int64_t tokens() const { return n_seq * seq_len; }
};
const Sizes kSizes[] = {{1, 1, 1, 1},   {3, 1, 5, 3},  {1, 17, 33, 4},
                        {5, 13, 17, 2}, {3, 43, 8, 8}, {1, 257, 129, 5}};

std::string describe(const Sizes& s) {
  return std::to_string(s.n_seq) + " x " + std::to_string(s.seq_len) + " tokens, " +
         std::to_string(s.n_experts) + " experts";
}

// Scores, of which some tokens choose their first few and others, which are padding, none.
struct Routed {
  Sizes s;
  PoisonedContext ctx;
  OwnedTensor logit, prob, lse, token, expert, chosen;

  Routed(const Sizes& sizes, DType dtype)
      : s(sizes),
        logit(normal_strided(s.tokens(), s.n_experts, dtype, "logit")),
        prob(OwnedTensor::strided(s.tokens(), s.n_experts, dtype, 2)),
        lse({s.tokens()}, dtype),
        token({s.tokens()}, DType::i32),
        expert({s.tokens(), s.slots}, DType::i32),
        chosen({s.tokens(), s.slots}, dtype) {
    ops::softmax_forward(prob, lse, logit, ctx);
    fill_int(token, "token", -2, 6);
    set(token, 0, 3);  // at least one token is none
    ops::top_k(expert, chosen, prob, token, ctx);
    // Tokens may choose fewer experts than there are slots.
    for (std::int64_t slot = 0; slot < expert.numel(); ++slot) {
      if (slot % s.slots > 0 && slot % 7 == 3) set(expert, slot, -1), set(chosen, slot, kNan);
    }
  }
  bool is_padding(std::int64_t t) const { return token[t] < 0; }
  void gather_chosen() {
    for (std::int64_t slot = 0; slot < expert.numel(); ++slot) {
      if (expert[slot] < 0) continue;
      set(chosen, slot, prob[slot / s.slots * s.n_experts + static_cast<std::int64_t>(expert[slot])]);
    }
  }
};

TEST(SlotWeights, GradientMatchesFiniteDifferences) {
  for (const Sizes& s : kSizes) {
    for (const ops::SlotWeighting& weighting :
         {ops::SlotWeighting{}, ops::SlotWeighting{.normalise = true},
          ops::SlotWeighting{.normalise = true, .scale = 2.5, .eps = 0.3}, ops::SlotWeighting{.scale = 2.5}}) {
      Routed r(s, DType::f64);
      const OwnedTensor dweight = normal({s.tokens(), s.slots}, DType::f64, "dweight");
      const OwnedTensor weight({s.tokens(), s.slots}, DType::f64);
      const OwnedTensor dscore = OwnedTensor::strided(s.tokens(), s.n_experts, DType::f64, 3);
      // Scores of order one: 1 / (sum of the chosen) is large where they are probabilities of many experts.
      fill_normal(r.prob, "score", 0.1, 1.0);
      r.gather_chosen();
      ops::slot_weights_forward(weight, r.chosen, r.expert, weighting, r.ctx);
      ops::slot_weights_backward(dscore, dweight, weight, r.chosen, r.expert, weighting, r.ctx);
      const auto loss = [&] {
        r.gather_chosen();
        ops::slot_weights_forward(weight, r.chosen, r.expert, weighting, r.ctx);
        return dot(dweight, weight);
      };
      const GradientTolerance tolerance{.max_elements = 200};
      EXPECT_TRUE(gradient_matches(r.prob, dscore, loss, tolerance))
          << describe(s) << ", " << weighting.normalise << ", " << weighting.scale;
      EXPECT_TRUE(dscore.margins_untouched());
    }
  }
}

TEST(SlotWeights, NormalisedWeightsSumToOne) {
  for (const Sizes& s : kSizes) {
    Routed r(s, DType::f32);
    const OwnedTensor weight({s.tokens(), s.slots}, DType::f32);
    ops::slot_weights_forward(weight, r.chosen, r.expert, {.normalise = true}, r.ctx);
    for (std::int64_t t = 0; t < s.tokens(); ++t) {
      double sum = 0;
      for (std::int64_t k = 0; k < s.slots; ++k) sum += weight[t * s.slots + k];
      // The sum of K, its inverse and each product are rounded.
      const double expected = r.expert[t * s.slots] >= 0 ? 1 : 0;
      EXPECT_NEAR(sum, expected, (static_cast<double>(s.slots) + 2) * kFloatUnit)
          << describe(s) << ", token " << t;
    }
  }
}

TEST(RoutingSums, TwoSequencesByHand) {
  PoisonedContext ctx;
  OwnedTensor expert({6, 2}, DType::i32), prob({6, 2}, DType::f32), lse({6}, DType::f32);
  const OwnedTensor count({2, 2}, DType::i32), prob_sum({2, 2}, DType::f64), prob2_sum({2}, DType::f64),
      lse2_sum({2}, DType::f64);
  const OwnedTensor token = ints({5, -1, 0, -1, -7, 9});
  fill(expert, {0, 1, -1, -1, 0, -1,    //
                1, 1, -1, -1, 1, -1});  // a padding token that names experts counts nowhere either
  fill(prob, {0.5, 0.5, kNan, kNan, 0.75, 0.25, kNan, kNan, kNan, kNan, 0.125, 0.875});
  fill(lse, {2, kNan, 3, kNan, kNan, -4});
  ops::routing_sums(count, prob_sum, prob2_sum, lse2_sum, expert, prob, lse, token, ctx);
  EXPECT_EQ(values(count), (std::vector<double>{2, 1, 0, 1}));
  EXPECT_EQ(values(prob_sum), (std::vector<double>{1.25, 0.75, 0.125, 0.875}));
  EXPECT_EQ(values(prob2_sum), (std::vector<double>{0.5 + 0.5625 + 0.0625, 0.015625 + 0.765625}));
  EXPECT_EQ(values(lse2_sum), (std::vector<double>{13, 16}));
}

struct Sums {
  OwnedTensor count, prob_sum, prob2_sum, lse2_sum;
  explicit Sums(Routed& r)
      : count({r.s.n_seq, r.s.n_experts}, DType::i32),
        prob_sum({r.s.n_seq, r.s.n_experts}, DType::f64),
        prob2_sum({r.s.n_seq}, DType::f64),
        lse2_sum({r.s.n_seq}, DType::f64) {
    ops::routing_sums(count, prob_sum, prob2_sum, lse2_sum, r.expert, r.prob, r.lse, r.token, r.ctx);
  }
};

TEST(RoutingSums, FollowTheDefinition) {
  for (const Sizes& s : kSizes) {
    for (DType dtype : {DType::f32, DType::f64}) {
      Routed r(s, dtype);
      const Sums sums(r);
      std::vector<double> count(static_cast<std::size_t>(s.n_seq * s.n_experts), 0.0), prob_sum(count);
      std::vector<double> lse2_sum(static_cast<std::size_t>(s.n_seq), 0.0), prob2_sum(lse2_sum);
      double slots_taken = 0;
      for (std::int64_t t = 0; t < s.tokens(); ++t) {
        if (r.is_padding(t)) continue;
        const std::int64_t b = t / s.seq_len;
        for (std::int64_t k = 0; k < s.slots; ++k) {
          const double e = r.expert[t * s.slots + k];
          if (e < 0) continue;
          count[static_cast<std::size_t>(b * s.n_experts + static_cast<std::int64_t>(e))] += 1;
          slots_taken += 1;
        }
        for (std::int64_t e = 0; e < s.n_experts; ++e) {
          const double p = r.prob[t * s.n_experts + e];
          prob_sum[static_cast<std::size_t>(b * s.n_experts + e)] += p;
          prob2_sum[static_cast<std::size_t>(b)] += p * p;
        }
        lse2_sum[static_cast<std::size_t>(b)] += r.lse[t] * r.lse[t];
      }
      EXPECT_EQ(values(sums.count), count) << describe(s);
      EXPECT_EQ(values(sums.prob_sum), prob_sum) << describe(s);  // in double and in token order: the same bits
      // Up to 257 * 33 squares in another order.
      EXPECT_TRUE(all_near(values(sums.prob2_sum), prob2_sum, 1e-12, 0)) << describe(s);
      // A fused multiply-add skips one rounding in two.
      EXPECT_TRUE(all_near(values(sums.lse2_sum), lse2_sum, 257 * 0x1p-53, 0)) << describe(s);
      double all = 0;
      for (double c : values(sums.count)) all += c;
      EXPECT_EQ(all, slots_taken);
    }
  }
}

TEST(RoutingSums, SequenceGradientMatchesFiniteDifferences) {
  for (const Sizes& s : kSizes) {
    Routed r(s, DType::f64);
    const OwnedTensor dprob_BE = normal({s.n_seq, s.n_experts}, DType::f64, "dprob_BE");
    const OwnedTensor dprob = normal_strided(s.tokens(), s.n_experts, DType::f64, "dprob");
    const std::vector<double> before = values(dprob);
    constexpr double kOfSquares = -0.7;
    ops::add_sequence_gradient(dprob, dprob_BE, r.prob, kOfSquares, r.token, r.ctx);
    const auto loss = [&] {
      const Sums sums(r);
      double sum = dot(dprob_BE, sums.prob_sum);
      for (const double prob2 : values(sums.prob2_sum)) sum += kOfSquares * prob2;
      return sum;
    };
    const GradientTolerance tolerance{.max_elements = 200};
    EXPECT_TRUE(gradient_matches(r.prob, difference(values(dprob), before), loss, tolerance)) << describe(s);
    EXPECT_TRUE(dprob.margins_untouched());
  }
}

TEST(RoutingSums, SequenceGradientByHand) {
  PoisonedContext ctx;
  OwnedTensor dprob_BE({2, 2}, DType::f64), dprob({4, 2}, DType::f32);
  fill(dprob_BE, {1, 2, 3, 4});
  fill(dprob, {10, 20, kNan, 20, 30, 40, 50, 60});
  const OwnedTensor unread({4, 2}, DType::f32);
  ops::add_sequence_gradient(dprob, dprob_BE, unread, 0, ints({0, -1, -1, 7}), ctx);
  EXPECT_EQ(dprob[0], 11);
  EXPECT_EQ(dprob[1], 22);
  EXPECT_TRUE(std::isnan(dprob[2]));
  EXPECT_EQ(values(dprob.view().columns(1, 1)), (std::vector<double>{22, 20, 40, 64}));
  EXPECT_EQ(dprob[4], 30);
  EXPECT_EQ(dprob[6], 53);
}

TEST(ZLoss, GradientMatchesFiniteDifferences) {
  for (const Sizes& s : kSizes) {
    Routed r(s, DType::f64);
    const double dz = 0.2;
    const OwnedTensor dlogit = normal_strided(s.tokens(), s.n_experts, DType::f64, "dlogit");
    const std::vector<double> before = values(dlogit);
    ops::z_loss_backward(dlogit, r.prob, r.lse, r.token, dz, r.ctx);
    const auto loss = [&] {
      ops::softmax_forward(r.prob, r.lse, r.logit, r.ctx);
      double sum = 0;
      for (double of_sequence : values(Sums(r).lse2_sum)) sum += of_sequence;
      return dz * sum;
    };
    // A loss of up to 0.2 * 257 * 5^2 = 1300, whose rounding of 2e-13 shows as 1e-8 over a step of 1e-5.
    const GradientTolerance tolerance{.absolute = 4e-8, .max_elements = 200};
    const std::vector<double> added = difference(values(dlogit), before);
    EXPECT_TRUE(gradient_matches(r.logit, added, loss, tolerance)) << describe(s);
    for (std::int64_t i = 0; i < dlogit.numel(); ++i) {
      ASSERT_TRUE(!r.is_padding(i / s.n_experts) || added[static_cast<std::size_t>(i)] == 0) << describe(s);
    }
    EXPECT_TRUE(dlogit.margins_untouched());
  }
}

TEST(ZLoss, PaddingIsNotRead) {
  PoisonedContext ctx;
  OwnedTensor dlogit({2, 2}, DType::f32), prob({2, 2}, DType::f32), lse({2}, DType::f32);
  fill(dlogit, {1, 2, 3, 4});
  fill(prob, {kNan, kNan, 0.25, 0.75});
  fill(lse, {kNan, 2});
  ops::z_loss_backward(dlogit, prob, lse, ints({-1, 0}), 0.5, ctx);
  EXPECT_EQ(values(dlogit), (std::vector<double>{1, 2, 3.5, 5.5}));
}

TEST(Routing, FloatFollowsDouble) {
  for (const Sizes& s : kSizes) {
    // The choice of experts is the double one's: near ties may fall otherwise in float.
    const Routed choice(s, DType::f64);
    const auto run = [&](DType dtype, const ops::SlotWeighting& weighting) {
      PoisonedContext ctx;
      OwnedTensor score = normal({s.tokens(), s.n_experts}, dtype, "score", 0.1, 1.0),
                  chosen({s.tokens(), s.slots}, dtype);
      for (std::int64_t slot = 0; slot < chosen.numel(); ++slot) {
        const double e = choice.expert[slot];
        if (e >= 0) set(chosen, slot, score[slot / s.slots * s.n_experts + static_cast<std::int64_t>(e)]);
      }
      const OwnedTensor dweight = normal({s.tokens(), s.slots}, dtype, "dweight"),
                        weight({s.tokens(), s.slots}, dtype);
      const OwnedTensor dscore({s.tokens(), s.n_experts}, dtype),
          dlogit = normal({s.tokens(), s.n_experts}, dtype, "dl");
      const OwnedTensor lse = normal({s.tokens()}, dtype, "lse");
      ops::slot_weights_forward(weight, chosen, choice.expert, weighting, ctx);
      ops::slot_weights_backward(dscore, dweight, weight, chosen, choice.expert, weighting, ctx);
      ops::z_loss_backward(dlogit, score, lse, choice.token, 0.3, ctx);
      ops::add_sequence_gradient(dlogit, normal({s.n_seq, s.n_experts}, DType::f64, "dprob_BE"), score, 0.2,
                                 choice.token, ctx);
      return std::vector{values(weight), values(dscore), values(dlogit)};
    };
    for (const ops::SlotWeighting& weighting : {ops::SlotWeighting{}, ops::SlotWeighting{.normalise = true},
                                                ops::SlotWeighting{.normalise = true, .scale = 1.7}}) {
      const auto actual = run(DType::f32, weighting), exact = run(DType::f64, weighting);
      // Sums of up to 8 numbers of order one and quotients of them, a dozen roundings of 6e-8; dweight - mean
      // cancels.
      EXPECT_TRUE(all_near(actual[0], exact[0], 7e-7, 0)) << describe(s);
      EXPECT_TRUE(all_near(actual[1], exact[1], 7e-7, 2e-6)) << describe(s);
      EXPECT_TRUE(all_near(actual[2], exact[2], 7e-7, 1e-6)) << describe(s);
    }
  }
}

TEST(Routing, SameBitsOnAnyThreadCount) {
  const Sizes s{7, 37, 33, 4};
  Routed r(s, DType::f32);
  const OwnedTensor dweight = normal({s.tokens(), s.slots}, DType::f32, "dweight");
  const OwnedTensor weight({s.tokens(), s.slots}, DType::f32);
  ops::slot_weights_forward(weight, r.chosen, r.expert, {.normalise = true}, r.ctx);
  expect_same_bits_on_any_thread_count([&] {
    OwnedTensor again({s.tokens(), s.slots}, DType::f32);
    ops::slot_weights_forward(again, r.chosen, r.expert, {.normalise = true}, r.ctx);
    return again;
  });
  expect_same_bits_on_any_thread_count([&] {
    OwnedTensor dscore({s.tokens(), s.n_experts}, DType::f32);
    ops::slot_weights_backward(dscore, dweight, weight, r.chosen, r.expert, {.normalise = true}, r.ctx);
    return dscore;
  });
  expect_same_bits_on_any_thread_count([&] { return std::move(Sums(r).prob_sum); });
  expect_same_bits_on_any_thread_count([&] { return std::move(Sums(r).prob2_sum); });
  expect_same_bits_on_any_thread_count([&] { return std::move(Sums(r).lse2_sum); });
  expect_same_bits_on_any_thread_count([&] { return std::move(Sums(r).count); });
  expect_same_bits_on_any_thread_count([&] {
    OwnedTensor dlogit = normal({s.tokens(), s.n_experts}, DType::f32, "dlogit");
    ops::z_loss_backward(dlogit, r.prob, r.lse, r.token, 0.3, r.ctx);
    ops::add_sequence_gradient(dlogit, Sums(r).prob_sum, r.prob, 0.2, r.token, r.ctx);
    return dlogit;
  });
}

TEST(Routing, RefusesOtherShapes) {
  PoisonedContext ctx;
  const OwnedTensor f2({2, 2}, DType::f32), f3({2, 3}, DType::f32), f32_2({2}, DType::f32),
      f43({4, 3}, DType::f32);
  const OwnedTensor expert({2, 2}, DType::i32), token = ints({0, 0}), token3 = ints({0, 0, 0});
  const OwnedTensor count({2, 3}, DType::i32), sum({2, 3}, DType::f64), lse2({2}, DType::f64);
  EXPECT_THROW(ops::slot_weights_forward(f3, f2, expert, {}, ctx), std::logic_error);
  EXPECT_THROW(ops::slot_weights_forward(f2, f3, expert, {}, ctx), std::logic_error);
  EXPECT_THROW(ops::slot_weights_backward(f43, f2, f2, f2, expert, {}, ctx), std::logic_error);
  EXPECT_THROW(ops::slot_weights_backward(f3, f3, f2, f2, expert, {}, ctx), std::logic_error);
  EXPECT_THROW(ops::routing_sums(count, sum, lse2, lse2, expert, f3, f32_2, token3, ctx), std::logic_error);
  EXPECT_THROW(ops::routing_sums(count, sum, lse2, lse2, expert, f2, f32_2, token, ctx), std::logic_error);
  EXPECT_THROW(ops::add_sequence_gradient(f43, sum, f43, 0, token, ctx), std::logic_error);
  EXPECT_THROW(ops::add_sequence_gradient(f3, sum, f2, 0, token, ctx), std::logic_error);
  EXPECT_THROW(ops::z_loss_backward(f3, f2, f32_2, token, 1.0, ctx), std::logic_error);
  EXPECT_THROW(ops::z_loss_backward(f3, f3, f32_2, token3, 1.0, ctx), std::logic_error);
}

TEST(Routing, RefusesOtherDtypes) {
  PoisonedContext ctx;
  const OwnedTensor f2({2, 2}, DType::f32), d2({2, 2}, DType::f64), f3({2, 3}, DType::f32),
      d3({2, 3}, DType::f64);
  const OwnedTensor f1({2}, DType::f32), d1({2}, DType::f64), token = ints({0, 0});
  const OwnedTensor expert({2, 2}, DType::i32), count({2, 3}, DType::i32), sum({2, 3}, DType::f64);
  fill(expert, {0, 1, 0, 1});
  EXPECT_THROW(ops::slot_weights_forward(f2, d2, expert, {}, ctx), std::logic_error);
  EXPECT_THROW(ops::slot_weights_forward(f2, f2, f2, {}, ctx), std::logic_error);
  EXPECT_THROW(ops::slot_weights_backward(d3, f2, f2, f2, expert, {}, ctx), std::logic_error);
  EXPECT_THROW(ops::slot_weights_backward(f3, d2, f2, f2, expert, {}, ctx), std::logic_error);
  EXPECT_THROW(ops::slot_weights_backward(f3, f2, d2, f2, expert, {}, ctx), std::logic_error);
  EXPECT_THROW(ops::slot_weights_backward(f3, f2, f2, d2, expert, {}, ctx), std::logic_error);
  EXPECT_THROW(ops::slot_weights_backward(f3, f2, f2, f2, f2, {}, ctx), std::logic_error);
  EXPECT_THROW(ops::routing_sums(f3, sum, d1, d1, expert, f3, f1, token, ctx), std::logic_error);
  EXPECT_THROW(ops::routing_sums(count, f3, d1, d1, expert, f3, f1, token, ctx), std::logic_error);
  EXPECT_THROW(ops::routing_sums(count, sum, d1, f1, expert, f3, f1, token, ctx), std::logic_error);
  EXPECT_THROW(ops::routing_sums(count, sum, d1, d1, f2, f3, f1, token, ctx), std::logic_error);
  EXPECT_THROW(ops::routing_sums(count, sum, d1, d1, expert, f3, d1, token, ctx), std::logic_error);
  EXPECT_THROW(ops::routing_sums(count, sum, d1, d1, expert, f3, f1, f1, ctx), std::logic_error);
  EXPECT_THROW(ops::routing_sums(count, sum, f1, d1, expert, f3, f1, token, ctx), std::logic_error);
  EXPECT_THROW(ops::add_sequence_gradient(f3, f3, f3, 0, token, ctx), std::logic_error);
  EXPECT_THROW(ops::add_sequence_gradient(f3, sum, d3, 0, token, ctx), std::logic_error);
  EXPECT_THROW(ops::add_sequence_gradient(f3, sum, f3, 0, f1, ctx), std::logic_error);
  EXPECT_THROW(ops::z_loss_backward(f3, d3, f1, token, 1.0, ctx), std::logic_error);
  EXPECT_THROW(ops::z_loss_backward(f3, f3, d1, token, 1.0, ctx), std::logic_error);
  EXPECT_THROW(ops::z_loss_backward(f3, f3, f1, f1, 1.0, ctx), std::logic_error);
}

}  // namespace
}  // namespace switchyard::test
