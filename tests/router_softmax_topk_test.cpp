#include "router/routed_layer.h"

#include <gtest/gtest.h>

#include <cmath>
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

RouterBatch batch_of(const Tensor& token_T) {
  return {.token_T = token_T, .n_seq = 2, .seq_len = token_T.rows() / 2};
}

// Two sequences of two tokens, the last one padding. The weight is a permutation, so that the logits are the
// numbers of x in another order: logit_0 = x_1, logit_1 = x_2, logit_2 = x_0.
struct HandExample : RouterFixture {
  HandExample(bool normalise, DType dtype)
      : RouterFixture(
            {}, {.hidden_size = 3, .n_experts = 3, .n_slots = 2, .normalise_weights = normalise, .init_std = 1},
            2, 2, dtype),
        x_TD({4, 3}, dtype),
        token_T(ints({7, 0, 3, -1})) {
    fill(store.value(0), {0, 1, 0, 0, 0, 1, 1, 0, 0});
    const double ln2 = std::log(2.0), ln3 = std::log(3.0), ln5 = std::log(5.0), ln6 = std::log(6.0);
    fill(x_TD, {ln5, 0, ln2,  // probabilities 1/8 2/8 5/8
                0, ln6, ln3,  // 6/10 3/10 1/10
                0, 0, 0,      // 1/3 each
                9, 8, 7});    // padding
    decision = layer.forward(x_TD, batch_of(token_T), ctx);
    // exp and log in the compute type: a few units in the last place
    tolerance = dtype == DType::f32 ? 1e-6 : 1e-14;
  }
  OwnedTensor x_TD, token_T;
  RoutingDecision decision;
  double tolerance;
};

TEST(SoftmaxTopK, ItsOneParameterIsTheGate) {
  ParameterStore store;
  RoutedLayer(
      config::Router{},
      RouterShape{.hidden_size = 3, .n_experts = 5, .n_slots = 2, .normalise_weights = true, .init_std = 0.25},
      "model.layers.0.mlp.gate.", store);
  ASSERT_EQ(store.rows().size(), 1u);
  EXPECT_EQ(store.rows()[0].name, "model.layers.0.mlp.gate.weight");
  EXPECT_EQ(store.rows()[0].shape, (Shape{5, 3}));
  EXPECT_EQ(store.rows()[0].init, Init::normal);
  EXPECT_EQ(store.rows()[0].init_std, 0.25);
  EXPECT_TRUE(store.rows()[0].weight_decay);
  EXPECT_EQ(store.rows()[0].sharding, Sharding::replicated);
}

TEST(SoftmaxTopK, ChoosesTheLargestAndBreaksTiesByExpert) {
  for (const DType dtype : kTypes) {
    const HandExample example(true, dtype);
    EXPECT_EQ(values(example.decision.expert_TK), (std::vector<double>{2, 1, 0, 1, 0, 1, -1, -1}));
  }
}

TEST(SoftmaxTopK, WeightsAreTheProbabilities) {
  for (const DType dtype : kTypes) {
    const HandExample example(false, dtype);
    EXPECT_TRUE(test::all_near(values(example.decision.weight_TK),
                               {5.0 / 8, 2.0 / 8, 6.0 / 10, 3.0 / 10, 1.0 / 3, 1.0 / 3, 0, 0},
                               example.tolerance, 0));
  }
}

TEST(SoftmaxTopK, NormalisedWeightsSumToOne) {
  for (const DType dtype : kTypes) {
    const HandExample example(true, dtype);
    EXPECT_TRUE(test::all_near(values(example.decision.weight_TK),
                               {5.0 / 7, 2.0 / 7, 2.0 / 3, 1.0 / 3, 0.5, 0.5, 0, 0}, example.tolerance, 0));
  }
}

TEST(SoftmaxTopK, SumsAreOfEachSequenceWithoutItsPadding) {
  for (const DType dtype : kTypes) {
    const HandExample example(true, dtype);
    const LayerRouting& sums = example.routing;
    const auto squared_log = [](double x) { return std::log(x) * std::log(x); };
    EXPECT_EQ(values(sums.count_BE), (std::vector<double>{1, 2, 1, 1, 1, 0}));
    EXPECT_TRUE(test::all_near(values(sums.prob_sum_BE),
                               {1.0 / 8 + 6.0 / 10, 2.0 / 8 + 3.0 / 10, 5.0 / 8 + 1.0 / 10,  //
                                1.0 / 3, 1.0 / 3, 1.0 / 3},
                               example.tolerance, 0));
    EXPECT_TRUE(test::all_near(values(sums.lse2_sum_B), {squared_log(8) + squared_log(10), squared_log(3)},
                               2 * example.tolerance, 0));
  }
}

// loss = sum(r * weights) + sum(s_be * sum of P over the tokens of b) + dz * sum of lse^2, as the expert layer
// and the auxiliary losses make it; five experts, three slots, two sequences of four, padding at the end of the
// second.
class SoftmaxTopKGradient : public ::testing::TestWithParam<bool> {};

TEST_P(SoftmaxTopKGradient, MatchesFiniteDifferences) {
  constexpr std::int64_t kTokens = 8, kExperts = 5, kSlots = 3, kHidden = 6;
  constexpr double kDz = 0.05;
  RouterFixture fixture({},
                        {.hidden_size = kHidden,
                         .n_experts = kExperts,
                         .n_slots = kSlots,
                         .normalise_weights = GetParam(),
                         .init_std = 1},
                        2, 4, DType::f64);
  const Tensor weight_ED = fixture.store.value(0);
  test::fill_normal(weight_ED, "gate", 0.7);
  const OwnedTensor x_TD = test::normal({kTokens, kHidden}, DType::f64, "x");
  const OwnedTensor token_T = ints({1, 1, 1, 1, 1, 1, -1, -1});
  const OwnedTensor r_TK = test::normal({kTokens, kSlots}, DType::f64, "r");
  const OwnedTensor s_BE = test::normal({2, kExperts}, DType::f64, "s");
  const auto forward = [&] { return fixture.layer.forward(x_TD, batch_of(token_T), fixture.ctx); };
  const std::vector<double> chosen = values(forward().expert_TK);
  const auto loss = [&] {
    const RoutingDecision decision = forward();
    // A step over the border between two choices has no derivative to compare with.
    EXPECT_EQ(values(decision.expert_TK), chosen);
    const LayerRouting& sums = fixture.routing;
    double z = 0;
    for (const double lse2 : values(sums.lse2_sum_B)) z += kDz * lse2;
    return test::dot(r_TK, decision.weight_TK) + test::dot(s_BE, sums.prob_sum_BE) + z;
  };

  loss();
  const OwnedTensor dx_before = test::normal({kTokens, kHidden}, DType::f64, "dx before");
  const OwnedTensor dx_TD = test::normal({kTokens, kHidden}, DType::f64, "dx before");
  test::fill_normal(fixture.store.grad(0), "dgate before");
  const std::vector<double> dweight_before = values(fixture.store.grad(0));
  fixture.backward(dx_TD, {r_TK}, x_TD, batch_of(token_T), {.dprob_BE = s_BE, .dlse2 = kDz});
  const std::vector<double> dx = test::difference(values(dx_TD), values(dx_before));
  const std::vector<double> dweight = test::difference(values(fixture.store.grad(0)), dweight_before);
  // One thread: a team is not worth its start for eight tokens.
  EXPECT_TRUE(test::with_threads(1, [&] { return test::gradient_matches(x_TD, dx, loss); }));
  EXPECT_TRUE(test::with_threads(1, [&] { return test::gradient_matches(weight_ED, dweight, loss); }));
  for (std::size_t i = 6 * kHidden; i < dx.size(); ++i) EXPECT_EQ(dx[i], 0.0) << "padding has no gradient";
}

INSTANTIATE_TEST_SUITE_P(Weights, SoftmaxTopKGradient, ::testing::Bool(),
                         [](const auto& test) { return test.param ? "Normalised" : "AsTheyAre"; });

// The losses alone: the weights send nothing back. Then no choice matters, and every expert's row has a
// gradient.
TEST(SoftmaxTopK, LossesReachExpertsThatWereNotChosen) {
  HandExample example(true, DType::f64);
  const OwnedTensor dx_TD({4, 3}, DType::f64), none_TK({4, 2}, DType::f64), s_BE({2, 3}, DType::f64);
  fill(dx_TD, std::vector<double>(12, 0));
  fill(none_TK, std::vector<double>(8, 0));
  fill(s_BE, {1, 0, 0, 0, 0, 0});
  example.backward(dx_TD, {none_TK}, example.x_TD, batch_of(example.token_T), {.dprob_BE = s_BE, .dlse2 = 0});
  // dlogit_e = P_e (s_e - P_0); token 0: 1/8 * (7/8, -2/8, -5/8); token 1: 6/10 * (4/10, -3/10, -1/10).
  // dx is dlogit through the permutation: (dlogit_2, dlogit_0, dlogit_1).
  EXPECT_TRUE(test::all_near(
      values(dx_TD), {-5.0 / 64, 7.0 / 64, -2.0 / 64, -0.06, 0.24, -0.18, 0, 0, 0, 0, 0, 0}, 1e-14, 1e-16));
}

}  // namespace
}  // namespace switchyard::router
