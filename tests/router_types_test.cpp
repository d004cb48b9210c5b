// Each type of router on four tokens and three experts, worked out by hand.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "ops/router_state.h"
#include "ops/routing.h"
#include "router/complexity.h"
#include "router/quantile_bias.h"
#include "router_test_support.h"
#include "threads.h"

namespace switchyard::router {
namespace {

using test::fill;
using test::ints;
using test::OwnedTensor;
using test::values;

constexpr DType kTypes[] = {DType::f32, DType::f64};

// Four tokens, the last one padding; three experts; the weight is the identity, so that the logits are x.
RouterShape three_experts(std::int64_t n_slots) {
  return {.hidden_size = 3, .n_experts = 3, .n_slots = n_slots, .normalise_weights = true, .init_std = 1};
}
struct Hand : RouterFixture {
  Hand(const config::Router& options, std::int64_t n_slots, DType dtype, const Numbers& x)
      : RouterFixture(options, three_experts(n_slots), 1, 4, dtype),
        x_TD({4, 3}, dtype),
        token_T(ints({5, 0, 2, -1})),
        tolerance(dtype == DType::f32 ? 1e-6 : 1e-14) {  // exp and log: some units in the last place
    for (std::size_t i = 0; i < store.rows().size(); ++i)
      for (std::int64_t j = 0; j < store.value(i).numel(); ++j)
        test::set(store.value(i), j, store.rows()[i].trained && j % 4 == 0 ? 1 : 0);
    fill(x_TD, x);
  }
  RoutingDecision forward(bool training = true) { return layer.forward(x_TD, batch(token_T, training), ctx); }
  OwnedTensor x_TD, token_T;
  double tolerance;
};

const double ln2 = std::log(2.0), ln3 = std::log(3.0), ln5 = std::log(5.0), ln6 = std::log(6.0);
// Softmax: 1/8 2/8 5/8; 6/10 3/10 1/10; thirds.
const Numbers kLogits = {0, ln2, ln5, ln6, ln3, 0, 0, 0, 0, 9, 8, 7};

TEST(TopP, TheShortestListThatReachesP) {
  for (const DType dtype : kTypes) {
    Hand hand(options_of("top_p", three_experts(2), {{"p", 0.625}, {"max_experts", std::int64_t{3}}}), 2, dtype,
              kLogits);
    const RoutingDecision decision = hand.forward();
    // 5/8 alone (0.625 exactly in both types); 6/10 + 3/10; 1/3 + 1/3.
    EXPECT_EQ(values(decision.expert_TK), (Numbers{2, -1, -1, 0, 1, -1, 0, 1, -1, -1, -1, -1}));
    EXPECT_TRUE(test::all_near(values(decision.weight_TK),
                               {0.625, 0, 0, 0.6, 0.3, 0, 1.0 / 3, 1.0 / 3, 0, 0, 0, 0}, hand.tolerance, 0));
    EXPECT_EQ(values(hand.routing.count_BE), (Numbers{2, 2, 1}));
    // Entropies of the three distributions, coefficient 1e-4, a token share of 1/3.
    const double entropy = (1.0 / 8 * std::log(8) + 2.0 / 8 * std::log(4) + 5.0 / 8 * std::log(1.6)) +
                           (0.6 * std::log(1 / 0.6) + 0.3 * std::log(1 / 0.3) + 0.1 * std::log(10)) + ln3;
    EXPECT_NEAR(hand.own_loss({.dprob_BE = {}, .dlse2 = 0, .token_share = 1.0 / 3}), 1e-4 * entropy / 3,
                1e-4 * 3 * hand.tolerance);
  }
}

TEST(TopP, MaxExpertsLimitsAndRenormaliseDivides) {
  Hand hand(options_of("top_p", three_experts(2), {{"p", 1.0}, {"renormalise", true}}), 2, DType::f64, kLogits);
  const RoutingDecision decision = hand.forward();
  EXPECT_EQ(values(decision.expert_TK), (Numbers{2, 1, 0, 1, 0, 1, -1, -1}));
  EXPECT_TRUE(test::all_near(values(decision.weight_TK), {5.0 / 7, 2.0 / 7, 2.0 / 3, 1.0 / 3, 0.5, 0.5, 0, 0},
                             hand.tolerance, 0));
}

TEST(DynamicK, AThresholdOnTheLengthGivesAllOrTheFewest) {
  for (const DType dtype : kTypes) {
    // Lengths sqrt(ln2^2 + ln5^2) = 1.75, sqrt(ln6^2 + ln3^2) = 2.10, 0.
    Hand hand(options_of("dynamic_k", three_experts(2), {{"estimator", "threshold"}, {"threshold", 2.0}}), 2,
              dtype, kLogits);
    const RoutingDecision decision = hand.forward();
    EXPECT_EQ(values(decision.expert_TK), (Numbers{2, -1, 0, 1, 0, -1, -1, -1}));
    EXPECT_TRUE(
        test::all_near(values(decision.weight_TK), {1, 0, 2.0 / 3, 1.0 / 3, 1, 0, 0, 0}, hand.tolerance, 0));
    EXPECT_EQ(hand.store.rows().size(), 1u);  // no state
  }
}

TEST(DynamicK, TheComplexityIsMeasuredAgainstARunningMeanAndVariance) {
  for (const DType dtype : kTypes) {
    // l1 lengths 1, 4, 7; nothing is known before the first step: c = 1/2, k = floor(1 + 2/2 + 1/2) = 2.
    Hand hand(options_of("dynamic_k", three_experts(2),
                         {{"estimator", "activation_norm_l1"},
                          {"max_experts", std::int64_t{3}},
                          {"statistics_decay", 0.75}}),
              2, dtype, {1, 0, 0, 0, 4, 0, 0, 0, -7, 9, 9, 9});
    EXPECT_EQ(values(hand.forward().expert_TK), (Numbers{0, 1, -1, 1, 0, -1, 0, 1, -1, -1, -1, -1}));
    hand.after_step();
    // Mean 4, variance (9 + 0 + 9) / 3 = 6, taken as they are; padding counts in neither.
    EXPECT_NEAR(hand.row("complexity_mean").dim(0) ? test::get(hand.row("complexity_mean"), 0) : 0, 4, 1e-6);
    EXPECT_NEAR(test::get(hand.row("complexity_var"), 0), 6, 1e-6);
    // c = sigmoid(-3/sqrt 6) = 0.227, 1/2, 0.773: k = floor(1 + 2 c + 1/2) = 1, 2, 3.
    EXPECT_EQ(values(hand.forward().expert_TK), (Numbers{0, -1, -1, 1, 0, -1, 0, 1, 2, -1, -1, -1}));
    test::fill(hand.x_TD, {2, 0, 0, 0, 2, 0, 0, 0, 2, 9, 9, 9});
    hand.forward();
    hand.after_step();
    EXPECT_NEAR(test::get(hand.row("complexity_mean"), 0), 0.75 * 4 + 0.25 * 2, 1e-6);
    EXPECT_NEAR(test::get(hand.row("complexity_var"), 0), 0.75 * 6, 1e-6);
    // Evaluation changes nothing.
    const Numbers before = hand.statistics();
    test::fill(hand.x_TD, {5, 0, 0, 0, 2, 0, 0, 0, 2, 9, 9, 9});
    hand.forward(false);
    EXPECT_EQ(hand.statistics(), before);
  }
}

TEST(ExpertThreshold, TokensGoToEveryExpertWhoseThresholdTheyExceed) {
  for (const DType dtype : kTypes) {
    // Sigmoid scores 1/2 2/3 5/6; 6/7 3/4 1/2; 1/2 each.
    Hand hand(options_of("expert_threshold", three_experts(1),
                         {{"max_experts", std::int64_t{2}}, {"threshold_decay", 0.5}}),
              1, dtype, kLogits);
    fill(hand.row("thresholds"), {0.55, 0.6, 0.5});
    const RoutingDecision decision = hand.forward();
    // A score equal to the threshold does not exceed it: the third token has no expert at all.
    EXPECT_EQ(values(decision.expert_TK), (Numbers{2, 1, 0, 1, -1, -1, -1, -1}));
    EXPECT_TRUE(test::all_near(values(decision.weight_TK), {5.0 / 6, 2.0 / 3, 6.0 / 7, 0.75, 0, 0, 0, 0},
                               hand.tolerance, 0));
    EXPECT_EQ(values(hand.routing.count_BE), (Numbers{1, 2, 1}));
    hand.after_step();
    // Expert 0: scores 1/2, 6/7, 1/2; 1 - K/E = 2/3 of three is the second, a gap of -0.05 to the threshold.
    // Half of it is gone, up to the width of a bin there (4 percent).
    EXPECT_NEAR(test::get(hand.row("thresholds"), 0), 0.525, 0.002);
    // Expert 1: 2/3, 3/4, 1/2: the second is 2/3, a gap of 0.067.
    EXPECT_NEAR(test::get(hand.row("thresholds"), 1), 0.6 + 0.5 * (2.0 / 3 - 0.6), 0.002);
  }
}

TEST(Quantile, TheBiasChoosesAndIsSolvedForOnceAStep) {
  for (const DType dtype : kTypes) {
    Hand hand(options_of("quantile", three_experts(1)), 1, dtype, kLogits);
    fill(hand.row("e_score_correction_bias"), {0, 0.25, 0});
    // S + b: 1/2 11/12 5/6; 6/7 1 1/2; 1/2 3/4 1/2: expert 1 three times, though it weighs by S.
    const RoutingDecision decision = hand.forward();
    EXPECT_EQ(values(decision.expert_TK), (Numbers{1, 1, 1, -1}));
    EXPECT_TRUE(test::all_near(values(decision.weight_TK), {1, 1, 1, 0}, hand.tolerance, 0));
    hand.after_step();
    // Cutoffs 5/6, 6/7, 1/2. Margins cutoff - S: expert 0: 1/3, 0, 0; expert 1: 1/6, 3/28, 0; expert 2: 0,
    // 5/14, 0. Their 1/3 quantiles are the smallest, at the upper border of its bin: all about 0, but for the
    // gap of expert 1, 0 - 0.25, of a bin 4 percent wide. Less the mean there is nothing left of any.
    for (int e = 0; e < 3; ++e)
      EXPECT_NEAR(test::get(hand.row("e_score_correction_bias"), e), 0, 0.01) << "expert " << e;
    // Now the scores choose; the third token's are all alike.
    const Numbers after = values(hand.forward().expert_TK);
    EXPECT_EQ((Numbers{after[0], after[1], after[3]}), (Numbers{2, 0, -1}));
  }
}

TEST(Quantile, ASolveByHand) {
  // Two experts, share 1/2. Expert 0: gaps 0.1 and 0.3, expert 1: gaps -0.2 twice.
  Numbers count_EN(4 * ops::kGapBins);
  const auto count = [&](std::size_t e, double gap) {
    const auto& border = ops::gap_borders();
    std::size_t i = 0;
    while (i + 1 < ops::kGapBins && border[i + 1] <= std::abs(gap)) ++i;
    count_EN[e * 2 * ops::kGapBins + (gap < 0 ? ops::kGapBins - 1 - i : ops::kGapBins + i)] += 1;
  };
  count(0, 0.1), count(0, 0.3), count(1, -0.2), count(1, -0.2);
  const auto solved = [](const Numbers& bias_E, const Numbers& counts, double ema) {
    Context ctx;
    const OwnedTensor bias = test::doubles(bias_E), count_of_bin = test::doubles(counts);
    ops::follow_quantile_bias(bias, count_of_bin.view().reshape(Shape{2, 2 * ops::kGapBins}), 0.5, ema, ctx);
    return values(bias);
  };
  // 0.5 + 0.1 and 0 - 0.2 within a bin (4 percent), less their mean 0.2.
  EXPECT_TRUE(test::all_near(solved({0.5, 0}, count_EN, 0), {0.4, -0.4}, 0, 0.01));
  EXPECT_TRUE(test::all_near(solved({0.5, 0}, count_EN, 0.5), {0.45, -0.2}, 0, 0.01));
  EXPECT_EQ(solved({0.5, 1}, Numbers(4 * ops::kGapBins), 0), (Numbers{0.5, 1}));
}

// Scores of experts that differ in level: after some steps on the same tokens no expert has much more than its
// even share, and the mean of the bias is what it was where the rule keeps it.
TEST(ChoiceBias, EveryRuleBalancesWhereALinearRouterDoesNot) {
  constexpr std::int64_t kTokens = 512, kExperts = 8;
  const RouterShape shape{
      .hidden_size = 8, .n_experts = kExperts, .n_slots = 2, .normalise_weights = true, .init_std = 1};
  struct Rule {
    config::RouterOptions own;
    int steps;
    double most;  // of the even share, in the end
  };
  // A sign step goes to and fro by its speed; the average of loads leaves the log of what its bias needs.
  const Rule rules[] = {{{{"bias", "quantile"}}, 20, 1.05},
                        {{{"bias", "sign"}, {"bias_update_speed", 0.005}}, 200, 1.2},
                        {{{"bias", "smebu"}, {"bias_update_speed", 0.01}}, 200, 1.05},
                        {{{"bias", "phi"}}, 200, 1.3}};
  for (const Rule& rule : rules)
    for (const char* score : {"sigmoid", "softmax"}) {
      config::Router options = options_of("quantile", shape, rule.own);
      options.own.set("score_function", std::string(score));
      RouterFixture fixture(options, shape, 1, kTokens, DType::f32);
      test::fill_normal(fixture.row("weight"), "gate", 0.5, 0.3);
      fill(fixture.row("e_score_correction_bias"), Numbers(kExperts, 0));
      for (const Parameter& row : fixture.store.rows())
        if (row.name.ends_with("bias_momentum")) fill(fixture.row("bias_momentum"), Numbers(kExperts, 0));
      for (const Parameter& row : fixture.store.rows())
        if (row.name.ends_with("expert_load")) fill(fixture.row("expert_load"), Numbers(kExperts, 1));
      const OwnedTensor x_TD = test::normal({kTokens, 8}, DType::f32, "x", 1, 0.5),
                        token_T = ints(Numbers(kTokens, 1));
      double first = 0, last = 0;
      test::with_threads(1, [&] {  // a team is not worth its start for a step as small as this
        for (int step = 0; step < rule.steps; ++step) {
          fixture.layer.forward(x_TD, fixture.batch(token_T), fixture.ctx);
          const Numbers count = values(fixture.routing.count_BE);
          last = *std::max_element(count.begin(), count.end()) / (2.0 * kTokens / kExperts);
          if (step == 0) first = last;
          fixture.after_step();
        }
        return 0;
      });
      const std::string name = options.own.word("bias") + ", " + score;
      EXPECT_GT(first, 1.4) << name;
      EXPECT_LT(last, rule.most) << name;
      double sum = 0;
      for (const double bias : values(fixture.row("e_score_correction_bias"))) sum += bias;
      EXPECT_NEAR(sum, 0, 1e-4) << name;  // eight float32 numbers below 10, added to a hundred times
    }
}

// A micro-batch of training that is solved by itself is balanced at once, whatever the bias in force; that one
// moves as it does without, and evaluation knows nothing of it.
TEST(Quantile, AMicroBatchIsBalancedByItself) {
  constexpr std::int64_t kTokens = 512, kExperts = 8;
  const RouterShape shape{
      .hidden_size = 8, .n_experts = kExperts, .n_slots = 2, .normalise_weights = true, .init_std = 1};
  const OwnedTensor x_TD = test::normal({kTokens, 8}, DType::f32, "x", 1, 0.5),
                    token_T = ints(Numbers(kTokens, 1));
  for (std::int64_t t = kTokens / 2; t < kTokens; ++t)
    token_T.view().as<std::int32_t>()[t] = -1;  // half is padding
  Numbers load_of_solves, first_bias, first_evaluated;
  for (const std::int64_t solves : {0, 1, 6}) {
    RouterFixture fixture(options_of("quantile", shape, {{"bias_solves", solves}}), shape, 1, kTokens,
                          DType::f32);
    test::fill_normal(fixture.row("weight"), "gate", 0.5, 0.3);
    fill(fixture.row("e_score_correction_bias"), Numbers(kExperts, 0));
    fixture.layer.forward(x_TD, fixture.batch(token_T), fixture.ctx);
    const Numbers count = values(fixture.routing.count_BE);
    load_of_solves.push_back(*std::max_element(count.begin(), count.end()) / (1.0 * kTokens / kExperts));
    EXPECT_EQ(std::accumulate(count.begin(), count.end(), 0.0), kTokens);  // 2 slots of each of half the tokens
    fixture.after_step();
    const Numbers bias = values(fixture.row("e_score_correction_bias"));
    fill(fixture.row("e_score_correction_bias"), Numbers(kExperts, 0));
    fixture.layer.forward(x_TD, fixture.batch(token_T, false), fixture.ctx);
    const Numbers evaluated = values(fixture.routing.count_BE);
    if (solves == 0) first_bias = bias, first_evaluated = evaluated;
    EXPECT_EQ(bias, first_bias) << solves;
    EXPECT_EQ(evaluated, first_evaluated) << solves;
  }
  EXPECT_GT(load_of_solves[0], 1.4);
  EXPECT_LT(load_of_solves[1], load_of_solves[0] - 0.2);
  EXPECT_LT(load_of_solves[2], 1.05);  // 3 of 64 slots
}

// Of the first of a row of batches nothing older is kept, whatever a step of training keeps; of the i-th a
// mean.
TEST(Quantile, SettlingTakesTheMeanOfWhatItIsFed) {
  constexpr std::int64_t kTokens = 64, kExperts = 4;
  const RouterShape shape{
      .hidden_size = 8, .n_experts = kExperts, .n_slots = 2, .normalise_weights = true, .init_std = 1};
  const OwnedTensor token_T = ints(Numbers(kTokens, 1));
  const auto bias_after = [&](double ema, double keep, std::int64_t settle_tokens) {
    RouterFixture fixture(options_of("quantile", shape, {{"bias_ema", ema}, {"settle_tokens", settle_tokens}}),
                          shape, 1, kTokens, DType::f64);
    test::fill_normal(fixture.row("weight"), "gate", 0.5, 0.3);
    fill(fixture.row("e_score_correction_bias"), {0.1, 0.2, -0.3, 0});
    EXPECT_EQ(fixture.layer.router().settle_tokens(), settle_tokens);
    fixture.layer.forward(test::normal({kTokens, 8}, DType::f64, "x", 1, 0.5), fixture.batch(token_T),
                          fixture.ctx);
    if (settle_tokens > 0)
      fixture.layer.router().settle({}, *fixture.statistics_S, keep, fixture.ctx);
    else
      fixture.after_step();
    return values(fixture.row("e_score_correction_bias"));
  };
  EXPECT_EQ(bias_after(0.9, 0, 5), bias_after(0, 0, 0));
  EXPECT_EQ(bias_after(0, 0.75, 5), bias_after(0.75, 0, 0));
}

TEST(KMeans, TheMostSimilarMeansChooseAndMoveTowardsTheirTokens) {
  for (const DType dtype : kTypes) {
    config::Router options = options_of("kmeans", three_experts(1), {{"mean_decay", 0.75}});
    Hand hand(options, 1, dtype, {3, 4, 0, 0, 5, 0, 6, 8, 0, 9, 9, 9});
    fill(hand.row("means"), {2, 0, 0, 0, 3, 0, 0, 0, 1});
    // Cosines 0.6 0.8 0; 0 1 0; 0.6 0.8 0: expert 1 takes all.
    const RoutingDecision decision = hand.forward();
    EXPECT_EQ(values(decision.expert_TK), (Numbers{1, 1, 1, -1}));
    EXPECT_EQ(values(decision.weight_TK), (Numbers{1, 1, 1, 0}));
    hand.after_step();
    // The mean of the three is (3, 17/3, 0); the others keep theirs.
    EXPECT_TRUE(test::all_near(values(hand.row("means")), {2, 0, 0, 0.75, 2.25 + 17.0 / 12, 0, 0, 0, 1},
                               hand.tolerance, 0));
  }
}

TEST(Capacity, TheLargestWeightsStayAndTheRestIsDropped) {
  for (const DType dtype : kTypes) {
    config::Router options = options_of("softmax_topk", three_experts(2));
    options.capacity_factor = 0.5;  // ceil(0.5 * 3 * 2 / 3) = 1 slot an expert
    Hand hand(options, 2, dtype, kLogits);
    const RoutingDecision decision = hand.forward();
    // Without a limit {2, 1}, {0, 1}, {0, 1} with 5/7 2/7, 2/3 1/3, 1/2 1/2: expert 0 keeps the second token,
    // expert 1 the third.
    EXPECT_EQ(values(decision.expert_TK), (Numbers{2, -1, 0, -1, -1, 1, -1, -1}));
    EXPECT_TRUE(
        test::all_near(values(decision.weight_TK), {5.0 / 7, 0, 2.0 / 3, 0, 0, 0.5, 0, 0}, hand.tolerance, 0));
    EXPECT_EQ(values(hand.routing.count_BE), (Numbers{1, 1, 1}));
    EXPECT_EQ(values(hand.routing.dropped_1), Numbers{3});
  }
}

// A place in the global batch has its noise, whatever the cut; evaluation has none.
TEST(Jitter, IsAFunctionOfSeedStepLayerAndPlace) {
  RouterShape shape = three_experts(1);
  config::Router options = options_of("softmax_topk", shape);
  options.jitter = 0.5;
  const auto prob_sums = [&](std::uint64_t seed, std::int64_t step, std::int64_t layer,
                             std::int64_t first_sequence, std::int64_t n_seq, bool training) {
    shape.layer = layer;
    RouterFixture fixture(options, shape, n_seq, 2, DType::f64);
    test::fill_normal(fixture.row("weight"), "gate");
    const OwnedTensor x_TD({n_seq * 2, 3}, DType::f64),
        token_T = ints(Numbers(static_cast<std::size_t>(n_seq) * 2, 1));
    fill(x_TD, Numbers(static_cast<std::size_t>(n_seq) * 6, 0.25));
    RouterBatch batch = fixture.batch(token_T, training);
    batch.seed = seed;
    fixture.set_rng_offset(step, first_sequence);
    fixture.layer.forward(x_TD, batch, fixture.ctx);
    return values(fixture.routing.prob_sum_BE);
  };
  const Numbers whole = prob_sums(1, 2, 3, 0, 2, true);
  const Numbers first(whole.begin(), whole.begin() + 3), second(whole.begin() + 3, whole.end());
  EXPECT_EQ(prob_sums(1, 2, 3, 0, 1, true), first);
  EXPECT_EQ(prob_sums(1, 2, 3, 1, 1, true), second);
  EXPECT_NE(first, second);
  EXPECT_NE(prob_sums(2, 2, 3, 0, 1, true), first);
  EXPECT_NE(prob_sums(1, 3, 3, 0, 1, true), first);
  EXPECT_NE(prob_sums(1, 2, 4, 0, 1, true), first);
  EXPECT_EQ(prob_sums(1, 2, 3, 0, 1, false), prob_sums(9, 9, 9, 9, 1, false));
}

}  // namespace
}  // namespace switchyard::router
