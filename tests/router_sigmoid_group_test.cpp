#include "router/routed_layer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "gradient_check.h"
#include "router_test_support.h"
#include "tensors.h"
#include "threads.h"

namespace switchyard::router {
namespace {

using test::fill;
using test::ints;
using test::OwnedTensor;
using test::values;

constexpr DType kTypes[] = {DType::f32, DType::f64};
constexpr std::size_t kWeight = 0, kBias = 1;  // rows

config::Router options(double bias_update_speed = 1e-3) {
  return {.type = "sigmoid_group",
          .own = {{"score_function", std::string("sigmoid")},
                  {"bias", std::string("sign")},
                  {"bias_update_speed", bias_update_speed},
                  {"bias_mean_free", false}}};
}

RouterBatch batch_of(const Tensor& token_T) {
  return {.token_T = token_T, .n_seq = 2, .seq_len = token_T.rows() / 2};
}

// Two sequences of two tokens, the last one padding; four experts in two groups, of which one stays. The weight
// is the identity: the logits are x.
struct HandExample : RouterFixture {
  HandExample(bool normalise, DType dtype)
      : RouterFixture(options(0.125),
                      {.hidden_size = 4,
                       .n_experts = 4,
                       .n_slots = 2,
                       .n_group = 2,
                       .topk_group = 1,
                       .normalise_weights = normalise,
                       .weight_scale = 2,
                       .init_std = 1},
                      2, 2, dtype),
        x_TD({4, 4}, dtype),
        token_T(ints({7, 0, 3, -1})) {
    fill(store.value(kWeight), {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1});
    fill(store.value(kBias), {0, 0, 1, -0.5});
    const double ln3 = std::log(3.0), ln7 = std::log(7.0);
    fill(x_TD, {ln3, 0, -ln3, ln3,  // scores 3/4 1/2 1/4 3/4, with the bias 3/4 1/2 | 5/4 1/4
                ln7, ln7, -ln3, 0,  // 7/8 7/8 1/4 1/2, with the bias 7/8 7/8 | 5/4 0
                0, 0, 0, 0,         // 1/2 each, with the bias 1/2 1/2 | 3/2 0
                9, 8, 7, 6});       // padding
    decision = layer.forward(x_TD, batch_of(token_T), ctx);
    // exp and log in the compute type: a few units in the last place
    tolerance = dtype == DType::f32 ? 1e-6 : 1e-14;
  }
  OwnedTensor x_TD, token_T;
  RoutingDecision decision;
  double tolerance;
};

TEST(SigmoidGroup, ItsParametersAreTheGateAndABiasThatIsNotTrained) {
  ParameterStore store;
  RoutedLayer(
      options(),
      RouterShape{.hidden_size = 3, .n_experts = 6, .n_slots = 2, .normalise_weights = true, .init_std = 0.25},
      "model.layers.0.mlp.gate.", store);
  ASSERT_EQ(store.rows().size(), 2u);
  const Parameter &weight = store.rows()[kWeight], &bias = store.rows()[kBias];
  EXPECT_EQ(weight.name, "model.layers.0.mlp.gate.weight");
  EXPECT_EQ(weight.shape, (Shape{6, 3}));
  EXPECT_EQ(weight.init, Init::normal);
  EXPECT_EQ(weight.init_std, 0.25);
  EXPECT_TRUE(weight.weight_decay);
  EXPECT_TRUE(weight.trained);
  EXPECT_EQ(bias.name, "model.layers.0.mlp.gate.e_score_correction_bias");
  EXPECT_EQ(bias.shape, Shape{6});
  EXPECT_EQ(bias.init, Init::zeros);
  EXPECT_FALSE(bias.weight_decay);
  EXPECT_FALSE(bias.trained);
  for (const Parameter& row : store.rows()) EXPECT_EQ(row.sharding, Sharding::replicated);
}

TEST(SigmoidGroup, ScoreAndBiasChooseWithinTheBestGroup) {
  for (const DType dtype : kTypes) {
    const HandExample example(true, dtype);
    EXPECT_EQ(values(example.decision.expert_TK), (Numbers{2, 3, 0, 1, 2, 3, -1, -1}));
    EXPECT_EQ(values(example.layer.decision().expert_TK), values(example.decision.expert_TK));
  }
}

TEST(SigmoidGroup, TheBiasDoesNotWeigh) {
  for (const DType dtype : kTypes) {
    const HandExample as_they_are(false, dtype), normalised(true, dtype);
    // Twice the scores, and twice the share of the two chosen.
    EXPECT_TRUE(test::all_near(values(as_they_are.decision.weight_TK), {0.5, 1.5, 1.75, 1.75, 1, 1, 0, 0},
                               as_they_are.tolerance, 0));
    EXPECT_TRUE(test::all_near(values(normalised.decision.weight_TK), {0.5, 1.5, 1, 1, 1, 1, 0, 0},
                               normalised.tolerance, 0));
  }
}

TEST(SigmoidGroup, SumsAreOfEachSequenceWithoutItsPadding) {
  for (const DType dtype : kTypes) {
    const HandExample example(true, dtype);
    const LayerRouting& sums = example.routing;
    EXPECT_EQ(values(sums.count_BE), (Numbers{1, 1, 1, 1, 0, 0, 1, 1}));
    // Probabilities are the scores over their sum, 9/4 and 5/2; the bias has no part in them.
    EXPECT_TRUE(test::all_near(values(sums.prob_sum_BE),
                               {1.0 / 3 + 0.35, 2.0 / 9 + 0.35, 1.0 / 9 + 0.1, 1.0 / 3 + 0.2,  //
                                0.25, 0.25, 0.25, 0.25},
                               example.tolerance, 0));
    EXPECT_EQ(values(sums.lse2_sum_B), (Numbers{0, 0}));  // no softmax, no normaliser
  }
}

// loss = sum(r * weights) + sum(s_be * sum of P over the tokens of b), as the expert layer and the balance loss
// make it; eight experts in four groups, of which two stay, three slots, two sequences of four, padding at the
// end of the second.
class SigmoidGroupGradient : public ::testing::TestWithParam<bool> {};

TEST_P(SigmoidGroupGradient, MatchesFiniteDifferences) {
  constexpr std::int64_t kTokens = 8, kExperts = 8, kSlots = 3, kHidden = 6;
  RouterFixture fixture(options(),
                        {.hidden_size = kHidden,
                         .n_experts = kExperts,
                         .n_slots = kSlots,
                         .n_group = 4,
                         .topk_group = 2,
                         .normalise_weights = GetParam(),
                         .weight_scale = 2.5,
                         .init_std = 1},
                        2, 4, DType::f64);
  const Tensor weight_ED = fixture.store.value(kWeight);
  test::fill_normal(weight_ED, "gate", 0.7);
  test::fill_normal(fixture.store.value(kBias), "bias", 0.3);
  const OwnedTensor x_TD = test::normal({kTokens, kHidden}, DType::f64, "x");
  const OwnedTensor token_T = ints({1, 1, 1, 1, 1, 1, -1, -1});
  const OwnedTensor r_TK = test::normal({kTokens, kSlots}, DType::f64, "r");
  const OwnedTensor s_BE = test::normal({2, kExperts}, DType::f64, "s");
  const auto forward = [&] { return fixture.layer.forward(x_TD, batch_of(token_T), fixture.ctx); };
  const Numbers chosen = values(forward().expert_TK);
  const auto loss = [&] {
    const RoutingDecision decision = forward();
    // A step over the border between two choices has no derivative to compare with.
    EXPECT_EQ(values(decision.expert_TK), chosen);
    return test::dot(r_TK, decision.weight_TK) + test::dot(s_BE, fixture.routing.prob_sum_BE);
  };

  loss();
  const OwnedTensor dx_before = test::normal({kTokens, kHidden}, DType::f64, "dx before");
  const OwnedTensor dx_TD = test::normal({kTokens, kHidden}, DType::f64, "dx before");
  test::fill_normal(fixture.store.grad(kWeight), "dgate before");
  test::fill_normal(fixture.store.grad(kBias), "dbias before");
  const Numbers dweight_before = values(fixture.store.grad(kWeight)),
                dbias_before = values(fixture.store.grad(kBias));
  fixture.backward(dx_TD, {r_TK}, x_TD, batch_of(token_T), {.dprob_BE = s_BE, .dlse2 = 0});
  const Numbers dx = test::difference(values(dx_TD), values(dx_before));
  const Numbers dweight = test::difference(values(fixture.store.grad(kWeight)), dweight_before);
  // One thread: a team is not worth its start for eight tokens.
  EXPECT_TRUE(test::with_threads(1, [&] { return test::gradient_matches(x_TD, dx, loss); }));
  EXPECT_TRUE(test::with_threads(1, [&] { return test::gradient_matches(weight_ED, dweight, loss); }));
  EXPECT_EQ(values(fixture.store.grad(kBias)), dbias_before);
  for (std::size_t i = 6 * kHidden; i < dx.size(); ++i) EXPECT_EQ(dx[i], 0.0) << "padding has no gradient";
}

INSTANTIATE_TEST_SUITE_P(Weights, SigmoidGroupGradient, ::testing::Bool(),
                         [](const auto& test) { return test.param ? "Normalised" : "AsTheyAre"; });

// The losses alone: the weights send nothing back. Then no choice matters.
TEST(SigmoidGroup, LossesReachExpertsThatWereNotChosen) {
  HandExample example(true, DType::f64);
  const OwnedTensor dx_TD({4, 4}, DType::f64), none_TK({4, 2}, DType::f64), s_BE({2, 4}, DType::f64);
  fill(dx_TD, Numbers(16, 0));
  fill(none_TK, Numbers(8, 0));
  fill(s_BE, {1, 0, 0, 0, 0, 0, 0, 0});
  example.backward(dx_TD, {none_TK}, example.x_TD, batch_of(example.token_T), {.dprob_BE = s_BE, .dlse2 = 0});
  // dlogit_e = S_e (1 - S_e) (s_e - P_0) / sum of S; token 0: P_0 = 1/3, sum 9/4; token 1: P_0 = 7/20, sum 5/2.
  const double a = 1 / 2.25, b = 1 / 2.5, third = 1.0 / 3;
  EXPECT_TRUE(test::all_near(values(dx_TD),
                             {3.0 / 16 * (1 - third) * a, -third / 4 * a, -third * 3 / 16 * a,
                              -third * 3 / 16 * a, 7.0 / 64 * 0.65 * b, -7.0 / 64 * 0.35 * b,
                              -3.0 / 16 * 0.35 * b, -0.25 * 0.35 * b, 0, 0, 0, 0, 0, 0, 0, 0},
                             1e-14, 1e-16));
}

// What counts is the whole global batch, not the micro-batch of the last forward pass: its counts are
// {1, 1, 2, 2}.
TEST(SigmoidGroup, AfterAStepTheBiasMovesByTheCountsThatItIsGiven) {
  for (const DType dtype : kTypes) {
    HandExample example(true, dtype);
    example.layer.router().after_step(test::doubles({40, 30, 20, 30}), {}, example.ctx);
    EXPECT_EQ(values(example.store.value(kBias)), (Numbers{-0.125, 0, 1.125, -0.5}));
    EXPECT_EQ(values(example.store.value(kWeight)), (Numbers{1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}));
  }
}

TEST(SigmoidGroup, WithoutASpeedTheBiasStays) {
  RouterFixture fixture(
      options(0), {.hidden_size = 2, .n_experts = 3, .n_slots = 1, .normalise_weights = true, .init_std = 1}, 1,
      1, DType::f32);
  fill(fixture.store.value(kBias), {1, 2, 3});
  fixture.layer.router().after_step(test::doubles({10, 0, 0}), {}, fixture.ctx);
  EXPECT_EQ(values(fixture.store.value(kBias)), (Numbers{1, 2, 3}));
}

}  // namespace
}  // namespace switchyard::router
