// Every option of every router against finite differences in double, and steps at the edges of what may come.
#include <gtest/gtest.h>

#include <cmath>

#include "gradient_check.h"
#include "router_test_support.h"
#include "threads.h"

namespace switchyard::router {
namespace {

using test::ints;
using test::OwnedTensor;
using test::values;

struct Case {
  std::string name;
  std::string type;
  config::RouterOptions own{};
  bool normalise = true;
  double capacity_factor = 0;  // 0: none
  double jitter = 0;
  double logit_norm = 0;
  bool hashed = false;
};

std::vector<Case> cases() {
  const std::int64_t four = 4, two = 2;
  return {
      {"SoftmaxTopKJitterCapacity", "softmax_topk", {}, true, 0.7, 0.3},
      {"SoftmaxTopKLogitNorm", "softmax_topk", {}, true, 0, 0.3, 1.5},
      {"TopPLogitNorm", "top_p", {{"p", 0.6}, {"max_experts", four}}, true, 0, 0, 2},
      {"DynamicKLogitNorm", "dynamic_k", {{"max_experts", four}}, true, 0, 0, 2},
      {"QuantileLogitNorm", "quantile", {{"score_function", "softmax"}}, true, 0, 0, 0.7},
      {"ExpertThresholdLogitNorm",
       "expert_threshold",
       {{"max_experts", four}, {"score_function", "softmax"}},
       true,
       0,
       0,
       2},
      {"SigmoidGroupLogitNorm", "sigmoid_group", {{"score_function", "softmax"}}, false, 0, 0, 2},
      {"HashSoftmax", "lpr", {}, true, 0, 0, 0, true},
      {"HashSoftmaxLogitNormCapacityJitter", "softmax_topk", {}, false, 0.5, 0.3, 1.5, true},
      {"HashSqrtSoftplus", "quantile", {{"score_function", "sqrtsoftplus"}}, true, 0, 0, 0, true},
      {"SigmoidGroupJitterCapacity", "sigmoid_group", {}, true, 0.7, 0.3},
      {"SoftmaxTopKSimBal", "softmax_topk", {{"simbal_coef", 0.3}}},
      {"TopPSimBal", "top_p", {{"max_experts", four}, {"entropy_coef", 0.7}, {"simbal_coef", 0.3}}},
      {"SigmoidGroupMeanFree", "sigmoid_group", {{"bias_mean_free", true}}},
      {"SigmoidGroupSmebu", "sigmoid_group", {{"bias", "smebu"}}},
      {"SigmoidGroupPhi", "sigmoid_group", {{"bias", "phi"}}},
      {"QuantileSign", "quantile", {{"bias", "sign"}}},
      {"QuantileSmebuCapacityJitter", "quantile", {{"bias", "smebu"}}, true, 0.7, 0.3},
      {"QuantileSoftmaxPhi", "quantile", {{"bias", "phi"}, {"score_function", "softmax"}}},
      {"SigmoidGroupSqrtSoftplus", "sigmoid_group", {{"score_function", "sqrtsoftplus"}}, false, 0.7},
      {"SigmoidGroupSoftmax", "sigmoid_group", {{"score_function", "softmax"}}},
      {"QuantileSigmoid", "quantile"},
      {"QuantileSqrtSoftplus", "quantile", {{"score_function", "sqrtsoftplus"}}},
      {"QuantileSoftmaxAsTheyAre", "quantile", {{"score_function", "softmax"}}, false},
      {"QuantileSoftmaxCapacityJitter", "quantile", {{"score_function", "softmax"}}, true, 0.7, 0.3},
      {"TopP", "top_p", {{"p", 0.5}, {"max_experts", four}, {"entropy_coef", 0.7}}},
      {"TopPRenormalised", "top_p", {{"p", 0.6}, {"renormalise", true}}},
      {"TopPCapacityJitter", "top_p", {{"p", 0.9}, {"max_experts", four}}, true, 0.5, 0.3},
      {"DynamicKNormL2", "dynamic_k", {{"max_experts", four}}},
      {"DynamicKNormL1Capacity",
       "dynamic_k",
       {{"max_experts", four}, {"estimator", "activation_norm_l1"}},
       true,
       0.5},
      {"DynamicKAttention",
       "dynamic_k",
       {{"min_experts", two}, {"max_experts", four}, {"estimator", "attention_entropy"}}},
      {"DynamicKRouterEntropyJitter",
       "dynamic_k",
       {{"max_experts", four}, {"estimator", "router_entropy"}},
       true,
       0,
       0.3},
      {"DynamicKHiddenEntropy", "dynamic_k", {{"max_experts", four}, {"estimator", "hidden_entropy"}}},
      {"DynamicKLossGradient", "dynamic_k", {{"max_experts", four}, {"estimator", "loss_gradient"}}},
      {"DynamicKThreshold", "dynamic_k", {{"estimator", "threshold"}, {"threshold", 2.5}}},
      {"ExpertThresholdSigmoid", "expert_threshold", {{"max_experts", four}}},
      {"ExpertThresholdSqrtSoftplus",
       "expert_threshold",
       {{"max_experts", four}, {"score_function", "sqrtsoftplus"}}},
      {"ExpertThresholdSoftmaxCapacityJitter",
       "expert_threshold",
       {{"max_experts", four}, {"score_function", "softmax"}},
       true,
       0.3,
       0.3},
      {"KMeans", "kmeans"},
      {"KMeansCapacityJitter", "kmeans", {}, true, 0.7, 0.3},
  };
}

RouterShape shape_of(const Case& test_case) {
  return {.hidden_size = 6,
          .n_experts = 5,
          .n_slots = 3,
          .normalise_weights = test_case.normalise,
          .weight_scale = 1.5,
          .init_std = 1,
          .vocab_size = 2,
          .hashed = test_case.hashed};
}

config::Router options_of(const Case& test_case) {
  config::Router options = options_of(test_case.type, shape_of(test_case), test_case.own);
  if (test_case.capacity_factor > 0) options.capacity_factor = test_case.capacity_factor;
  options.jitter = test_case.jitter;
  options.logit_norm = test_case.logit_norm;
  return options;
}

// State that tells tokens and experts apart.
void fill_state(RouterFixture& fixture) {
  for (std::size_t i = 0; i < fixture.store.rows().size(); ++i) {
    const std::string& name = fixture.store.rows()[i].name;
    if (name.ends_with("tid2eid")) {
      test::fill(fixture.store.value(i), {0, 1, 2, 4, 1, 3});
      continue;
    }
    const double center = name.ends_with("thresholds") ? 0.2
                          : name.ends_with("_mean")    ? 2.4
                          : name.ends_with("_token")   ? 3
                          : name.ends_with("_var")     ? 1
                          : name.ends_with("_load")    ? 1
                                                       : 0;
    test::fill_normal(fixture.store.value(i), name,
                      name.ends_with("weight") || name.ends_with("means") ? 0.7 : 0.05, center);
  }
}

class RouterGradient : public ::testing::TestWithParam<Case> {};

// loss = sum(r * weights) + sum(s_be * sum of P over the tokens of b) + dp * sum of P^2 + dz * sum of lse^2 +
// the router's own, as the expert layer and the losses make it; two sequences of four, padding at the end of
// the second.
TEST_P(RouterGradient, MatchesFiniteDifferences) {
  constexpr double kDz = 0.05, kDp = -0.4;
  const Case& test_case = GetParam();
  RouterFixture fixture(options_of(test_case), shape_of(test_case), 2, 4, DType::f64);
  fill_state(fixture);
  const OwnedTensor x_TD = test::normal({8, 6}, DType::f64, "x"), token_T = ints({1, 1, 1, 1, 1, 1, -1, -1});
  const OwnedTensor r_TK = test::normal({8, fixture.layer.router().n_slots()}, DType::f64, "r");
  const OwnedTensor s_BE = test::normal({2, 5}, DType::f64, "s");
  const OwnedTensor entropy_T = test::normal({8}, DType::f64, "entropy", 0.5, 2.4);
  RouterBatch batch = fixture.batch(token_T);
  batch.attention_entropy_T = entropy_T;
  const OwnedTensor tokens_B = ints({4, 2});
  const RoutingLossGradient loss_gradient{
      .dprob_BE = s_BE, .dlse2 = kDz, .dprob2 = kDp, .token_share = 1.0 / 6, .tokens_B = tokens_B};
  const Numbers chosen = values(fixture.layer.forward(x_TD, batch, fixture.ctx).expert_TK);
  EXPECT_EQ(fixture.routing.dropped_1.as<std::int32_t>()[0] > 0, test_case.capacity_factor > 0);
  const auto loss = [&] {
    const RoutingDecision decision = fixture.layer.forward(x_TD, batch, fixture.ctx);
    // A step over the border between two choices has no derivative to compare with.
    EXPECT_EQ(values(decision.expert_TK), chosen);
    double sum = test::dot(r_TK, decision.weight_TK) + test::dot(s_BE, fixture.routing.prob_sum_BE) +
                 fixture.own_loss(loss_gradient);
    for (const double prob2 : values(fixture.routing.prob2_sum_B)) sum += kDp * prob2;
    for (const double lse2 : values(fixture.routing.lse2_sum_B)) sum += kDz * lse2;
    return sum;
  };
  loss();
  // A slot that was dropped sends nothing back.
  const OwnedTensor dweight_TK(r_TK.view().shape(), DType::f64);
  for (std::int64_t i = 0; i < dweight_TK.numel(); ++i)
    test::set(dweight_TK, i, chosen[static_cast<std::size_t>(i)] >= 0 ? r_TK[i] : 0);
  const OwnedTensor dx_TD = test::normal({8, 6}, DType::f64, "dx before");
  const Numbers dx_before = values(dx_TD);
  const Tensor grads = fixture.store.grads();
  for (std::int64_t i = 0; i < grads.numel(); ++i) test::set(grads, i, 0);
  fixture.backward(dx_TD, {dweight_TK}, x_TD, batch, loss_gradient);
  const Numbers dx = test::difference(values(dx_TD), dx_before);
  EXPECT_TRUE(test::with_threads(1, [&] { return test::gradient_matches(x_TD, dx, loss); }));
  for (std::size_t i = 0; i < fixture.store.rows().size(); ++i) {
    if (fixture.store.rows()[i].trained)
      EXPECT_TRUE(test::with_threads(1, [&] {
        return test::gradient_matches(fixture.store.value(i), values(fixture.store.grad(i)), loss);
      })) << fixture.store.rows()[i].name;
    else
      for (const double gradient : values(fixture.store.grad(i))) EXPECT_EQ(gradient, 0.0);
  }
  for (std::size_t i = 6 * 6; i < dx.size(); ++i) EXPECT_EQ(dx[i], 0.0) << "padding has no gradient";
  if (!fixture.layer.observes_gradient()) return;
  // Of the whole gradient, with what was there before; all tokens are 1 of 0 and 1, and the last two padding.
  double norms = 0;
  for (std::int64_t t = 0; t < 6; ++t) {
    double squares = 0;
    for (std::int64_t d = 0; d < 6; ++d) squares += std::pow(dx_TD[6 * t + d], 2);
    norms += std::sqrt(squares) / loss_gradient.token_share;
  }
  const Numbers sums = values(*fixture.gradient_statistics_S);
  EXPECT_EQ(sums[0], 0);
  EXPECT_NEAR(sums[1], norms, 1e-12 * norms);  // in double, in another order
  EXPECT_EQ(sums[2], 0);
  EXPECT_EQ(sums[3], 6);
}

// Through several steps: every token the same, so that some experts take all and others none; then all padding.
TEST_P(RouterGradient, StaysFiniteWhereOneExpertTakesAllAndWhereNothingComes) {
  const Case& test_case = GetParam();
  for (const bool padding : {false, true}) {
    RouterFixture fixture(options_of(test_case), shape_of(test_case), 2, 4, DType::f32);
    fill_state(fixture);
    const OwnedTensor x_TD({8, 6}, DType::f32), token_T = ints(Numbers(8, padding ? -1 : 1));
    for (std::int64_t i = 0; i < x_TD.numel(); ++i) test::set(x_TD, i, padding ? 0 : (i % 6 == 2 ? 20 : 0.1));
    const OwnedTensor entropy_T = test::normal({8}, DType::f32, "entropy", 0, 1);
    const OwnedTensor s_BE = test::normal({2, 5}, DType::f64, "s");
    const OwnedTensor tokens_B = ints({padding ? 0.0 : 4, padding ? 0.0 : 4});
    RouterBatch batch = fixture.batch(token_T);
    batch.attention_entropy_T = entropy_T;
    for (int step = 0; step < 4; ++step) {
      fixture.set_rng_offset(step, 0);
      fixture.arena->poison();
      const RoutingDecision decision = fixture.layer.forward(x_TD, batch, fixture.ctx);
      for (const double expert : values(decision.expert_TK)) EXPECT_TRUE(!padding || expert == -1);
      const OwnedTensor dweight_TK = test::normal({8, fixture.layer.router().n_slots()}, DType::f32, "r"),
                        dx_TD = test::normal({8, 6}, DType::f32, "dx");
      for (std::int64_t i = 0; i < dweight_TK.numel(); ++i)
        if (test::get(decision.expert_TK, i) < 0) test::set(dweight_TK, i, 0);
      fixture.backward(dx_TD, {dweight_TK}, x_TD, batch,
                       {.dprob_BE = s_BE, .dlse2 = 0.1, .token_share = 0.125, .tokens_B = tokens_B});
      for (const double value : values(dx_TD)) ASSERT_TRUE(std::isfinite(value));
      fixture.after_step();
      for (const double value : values(fixture.store.values()))
        ASSERT_TRUE(std::isfinite(value)) << "step " << step;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Routers, RouterGradient, ::testing::ValuesIn(cases()),
                         [](const auto& test) { return test.param.name; });

TEST(RouterGradients, EveryTypeHasACase) {
  for (const config::RouterSchema& schema : router_schemas()) {
    bool found = schema.type == "lpr";  // has a test of its own
    for (const Case& test_case : cases()) found = found || test_case.type == schema.type;
    EXPECT_TRUE(found) << schema.type;
  }
}

}  // namespace
}  // namespace switchyard::router
