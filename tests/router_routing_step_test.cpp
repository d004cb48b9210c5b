#include "router/routing_step.h"

#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "ops/routing.h"
#include "tensors.h"

namespace switchyard::router {
namespace {

using config::BalanceScope;
using test::OwnedTensor;

constexpr BalanceScope kScopes[] = {BalanceScope::layer, BalanceScope::sequence, BalanceScope::global_batch,
                                    BalanceScope::model};
// Sums of a few dozen products of order one, in double.
constexpr double kRounding = 1e-14;

struct Losses {
  config::Router options;
  std::int64_t n_slots;
};
struct LossValues {
  double balance = 0, z = 0, variance = 0;
};

// A step whose layers have the smallest router that there is; nothing is routed by them.
struct Step {
  Step(const Losses& losses, std::int64_t n_layers, std::int64_t n_experts, std::int64_t n_seq) {
    config::Model model;
    model.num_hidden_layers = n_layers;
    model.num_experts = n_experts;
    model.num_experts_per_tok = losses.n_slots;
    for (std::int64_t l = 0; l < n_layers; ++l)
      layers.push_back(std::make_unique<RoutedLayer>(losses.options,
                                                     RouterShape{.hidden_size = 1,
                                                                 .n_experts = n_experts,
                                                                 .n_slots = losses.n_slots,
                                                                 .normalise_weights = true,
                                                                 .init_std = 1,
                                                                 .layer = l},
                                                     std::to_string(l) + ".", store));
    std::vector<RoutedLayer*> each;
    for (const auto& layer : layers) each.push_back(layer.get());
    step.emplace(each, losses.options, model);
    Arena measure = Arena::measuring();
    step->plan(measure, n_seq, true);
    arena.emplace(measure.peak(), "test");
    step->plan(*arena, n_seq, true);
    arena->poison();
  }
  ParameterStore store;
  std::vector<std::unique_ptr<RoutedLayer>> layers;
  std::optional<Arena> arena;
  std::optional<RoutingStep> step;
};

// What the routers of a batch report, layer after layer and sequence by sequence, and what comes back.
class Routing {
 public:
  Routing(std::int64_t n_layers, std::int64_t n_experts, std::vector<double> tokens_B)
      : L_(n_layers),
        B_(static_cast<std::int64_t>(tokens_B.size())),
        E_(n_experts),
        tokens_({B_}, DType::i32),
        count_({L_, B_, E_}, DType::i32),
        prob_({L_, B_, E_}, DType::f64),
        prob2_({L_, B_}, DType::f64),
        lse2_({L_, B_}, DType::f64),
        dprob_({L_, B_, E_}, DType::f64),
        dlse2_L_(static_cast<std::size_t>(L_)) {
    test::fill(tokens_, tokens_B);
  }
  void set(std::int64_t layer, const std::vector<double>& count_BE, const std::vector<double>& prob_BE,
           const std::vector<double>& lse2_B, const std::vector<double>& prob2_B) {
    test::fill(count_.view().slice(layer, 1), count_BE);
    test::fill(prob_.view().slice(layer, 1), prob_BE);
    test::fill(lse2_.view().slice(layer, 1), lse2_B);
    test::fill(prob2_.view().slice(layer, 1), prob2_B);
  }
  // Sequences [first, first + n) as a micro-batch of their own.
  Routing part(std::size_t first, std::size_t n) const {
    const std::vector<double> tokens_B = tokens();
    Routing result(L_, E_, {tokens_B.begin() + first, tokens_B.begin() + first + n});
    const auto rows = [&](const OwnedTensor& all, std::int64_t layer, std::int64_t width) {
      return test::values(all.view()
                              .slice(layer, 1)
                              .reshape(Shape{B_, width})
                              .slice(static_cast<std::int64_t>(first), static_cast<std::int64_t>(n)));
    };
    for (std::int64_t l = 0; l < L_; ++l)
      result.set(l, rows(count_, l, E_), rows(prob_, l, E_), rows(lse2_, l, 1), rows(prob2_, l, 1));
    return result;
  }
  // count_LE: of the global batch.
  LossValues compute(const Losses& losses, std::int64_t n_tokens, std::int64_t n_sequences,
                     const std::vector<double>& count_LE) {
    Context ctx;
    Step with(losses, L_, E_, B_);
    RoutingStep& step = *with.step;
    test::fill(step.counts().count_LBE, test::values(count_));
    test::fill(step.counts().prob_sum_LBE, test::values(prob_));
    test::fill(step.counts().prob2_sum_LB, test::values(prob2_));
    test::fill(step.counts().lse2_sum_LB, test::values(lse2_));
    test::fill(step.global_count_LE(), count_LE);
    double values[3] = {};
    step.add_losses(Tensor(values, Shape{3}, DType::f64), tokens_,
                    {.n_tokens = n_tokens, .n_sequences = n_sequences}, ctx);
    for (std::int64_t l = 0; l < L_; ++l) {
      test::fill(dprob_.view().slice(l, 1), test::values(step.routing(l).loss.dprob_BE));
      dlse2_L_[static_cast<std::size_t>(l)] = step.routing(l).loss.dlse2;
      dprob2_ = step.routing(l).loss.dprob2;
      EXPECT_EQ(step.routing(l).loss.token_share, 1 / static_cast<double>(n_tokens));
    }
    return {values[0], values[1], values[2]};
  }
  // The whole of it as one global batch.
  LossValues compute_alone(const Losses& losses) {
    const std::vector<double> tokens_B = tokens();
    const double n_tokens = std::accumulate(tokens_B.begin(), tokens_B.end(), 0.0);
    return compute(losses, static_cast<std::int64_t>(n_tokens), B_, counts());
  }
  std::vector<double> counts() const {
    Context ctx;
    const OwnedTensor count_LE({L_, E_}, DType::f64);
    test::fill(count_LE, std::vector<double>(static_cast<std::size_t>(L_ * E_), 0.0));
    ops::add_counts(count_LE, count_, ctx);
    return test::values(count_LE);
  }
  std::vector<double> dprob(std::int64_t layer) const { return test::values(dprob_.view().slice(layer, 1)); }
  double dlse2(std::size_t layer) const { return dlse2_L_[layer]; }
  double dprob2() const { return dprob2_; }  // of the last layer: all have the same
  double prob2(std::int64_t layer, std::int64_t b) const { return prob2_[layer * B_ + b]; }
  double prob(std::int64_t layer, std::int64_t i) const { return prob_[layer * B_ * E_ + i]; }
  double lse2(std::int64_t layer, std::int64_t b) const { return lse2_[layer * B_ + b]; }
  std::vector<double> tokens() const { return test::values(tokens_); }

 private:
  std::int64_t L_, B_, E_;
  OwnedTensor tokens_, count_, prob_, prob2_, lse2_, dprob_;
  std::vector<double> dlse2_L_;
  double dprob2_ = 0;
};

config::Router options(BalanceScope scope, double balance_coef, double z_coef, double variance_coef = 0) {
  return {.balance_coef = balance_coef,
          .balance_scope = scope,
          .z_loss_coef = z_coef,
          .variance_coef = variance_coef};
}

// Two layers, two sequences of 3 and 1 tokens, two experts, one slot a token.
Routing two_layers() {
  Routing routing(2, 2, {3, 1});
  routing.set(0, {2, 1, 1, 0}, {1.8, 1.2, 0.7, 0.3}, {6, 2}, {1.9, 0.58});
  routing.set(1, {1, 2, 1, 0}, {0.6, 2.4, 0.5, 0.5}, {3, 1}, {2.1, 0.5});
  return routing;
}

TEST(AuxiliaryLosses, BalancedLoadCostsTheCoefficientOrKTimesIt) {
  // Four experts, two slots; every expert has its share in every sequence, and so has its probability.
  Routing routing(3, 4, {2, 6});
  for (std::int64_t l = 0; l < 3; ++l)
    routing.set(l, {1, 1, 1, 1, 3, 3, 3, 3}, {0.5, 0.5, 0.5, 0.5, 1.5, 1.5, 1.5, 1.5}, {0, 0}, {0.5, 1.5});
  for (const BalanceScope scope : kScopes) {
    const Losses losses{options(scope, 0.25, 0), 2};
    EXPECT_NEAR(routing.compute_alone(losses).balance, scope == BalanceScope::model ? 0.5 : 0.25, kRounding);
  }
}

TEST(AuxiliaryLosses, LayerScopeByHand) {
  Routing routing = two_layers();
  const auto values = routing.compute_alone(Losses{options(BalanceScope::layer, 0.1, 0), 1});
  // Layer 0: f = 2 (3, 1) / 4, Pbar = (2.5, 1.5) / 4: 1.125.   Layer 1: f = (1, 1): 1.
  EXPECT_NEAR(values.balance, 0.1 * (1.125 + 1.0) / 2, kRounding);
  // 0.1 f_i / (2 layers * 4 tokens), for every token alike.
  EXPECT_TRUE(test::all_near(routing.dprob(0), {0.01875, 0.00625, 0.01875, 0.00625}, kRounding, 0));
  EXPECT_TRUE(test::all_near(routing.dprob(1), {0.0125, 0.0125, 0.0125, 0.0125}, kRounding, 0));
}

TEST(AuxiliaryLosses, SequenceScopeByHand) {
  Routing routing = two_layers();
  const auto values = routing.compute_alone(Losses{options(BalanceScope::sequence, 0.1, 0), 1});
  // Layer 0: f = (4/3, 2/3), Pbar = (.6, .4): 16/15;  f = (2, 0), Pbar = (.7, .3): 7/5.
  // Layer 1: f = (2/3, 4/3), Pbar = (.2, .8): 6/5;    f = (2, 0), Pbar = (.5, .5): 1.
  EXPECT_NEAR(values.balance, 0.1 * (16.0 / 15 + 7.0 / 5 + 6.0 / 5 + 1) / 4, kRounding);
  // 0.1 f_i / (2 layers * 2 sequences * tokens of the sequence)
  EXPECT_TRUE(test::all_near(routing.dprob(0), {0.1 / 9, 0.05 / 9, 0.05, 0}, kRounding, 0));
  EXPECT_TRUE(test::all_near(routing.dprob(1), {0.05 / 9, 0.1 / 9, 0.05, 0}, kRounding, 0));
}

TEST(AuxiliaryLosses, GlobalBatchScopeByHand) {
  Routing routing = two_layers();
  // As many tokens again lie in other micro-batches; these are the counts of both.
  const std::vector<double> count_LE = {5, 3, 2, 6};
  const Losses losses{options(BalanceScope::global_batch, 0.1, 0), 1};
  const auto values = routing.compute(losses, 8, 4, count_LE);
  // Layer 0: f = 2 (5, 3) / 8, this part of Pbar = (2.5, 1.5) / 8: .53125.
  // Layer 1: f = 2 (2, 6) / 8, this part of Pbar = (1.1, 2.9) / 8: .6125.
  EXPECT_NEAR(values.balance, 0.1 * (0.53125 + 0.6125) / 2, kRounding);
  // 0.1 f_i / (2 layers * 8 tokens)
  EXPECT_TRUE(test::all_near(routing.dprob(0), {0.0078125, 0.0046875, 0.0078125, 0.0046875}, kRounding, 0));
  EXPECT_TRUE(test::all_near(routing.dprob(1), {0.003125, 0.009375, 0.003125, 0.009375}, kRounding, 0));
}

TEST(AuxiliaryLosses, ModelScopeByHand) {
  Routing routing = two_layers();
  const auto values = routing.compute_alone(Losses{options(BalanceScope::model, 0.1, 0), 1});
  // The tokens of both layers as one batch of 8: c = (5, 3), Pbar = (3.6, 4.4) / 8.
  EXPECT_NEAR(values.balance, 0.1 * 2 * (5.0 / 8 * 0.45 + 3.0 / 8 * 0.55), kRounding);
  for (const int layer : {0, 1})
    EXPECT_TRUE(test::all_near(routing.dprob(layer), {0.015625, 0.009375, 0.015625, 0.009375}, kRounding, 0));
}

TEST(AuxiliaryLosses, ZLossByHand) {
  Routing routing = two_layers();
  const auto values = routing.compute_alone(Losses{options(BalanceScope::layer, 0, 0.01), 1});
  EXPECT_NEAR(values.z, 0.01 * (6 + 2 + 3 + 1) / (2 * 4), kRounding);
  EXPECT_EQ(values.balance, 0.0);
  for (const int layer : {0, 1}) {
    EXPECT_NEAR(routing.dlse2(static_cast<std::size_t>(layer)), 0.01 / (2 * 4), kRounding);
    EXPECT_EQ(routing.dprob(layer), (std::vector<double>(4, 0.0)));
  }
}

TEST(AuxiliaryLosses, VarianceLossByHand) {
  for (const BalanceScope scope : kScopes) {
    Routing routing = two_layers();
    const auto values = routing.compute_alone(Losses{options(scope, 0, 0, 0.3), 1});
    // Layer 0: 1.9 - (1.8^2 + 1.2^2) / 3 = 0.34; one token does not differ from itself.
    // Layer 1: 2.1 - (0.6^2 + 2.4^2) / 3 = 0.06.
    EXPECT_NEAR(values.variance, -0.3 * (0.34 + 0.06) / (2 * 4), kRounding);
    EXPECT_EQ(values.balance, 0.0);
    EXPECT_NEAR(routing.dprob2(), -0.3 / (2 * 4), kRounding);
    // 2 * 0.3 / (2 layers * 4 tokens) times the mean of the sequence.
    EXPECT_TRUE(test::all_near(routing.dprob(0), {0.045, 0.03, 0.0525, 0.0225}, kRounding, 0));
    EXPECT_TRUE(test::all_near(routing.dprob(1), {0.015, 0.06, 0.0375, 0.0375}, kRounding, 0));
  }
}

TEST(AuxiliaryLosses, OnlyTheGlobalBatchScopeNeedsCountsFirst) {
  for (const BalanceScope scope : kScopes) {
    EXPECT_EQ(Step({options(scope, 0.1, 0), 1}, 2, 2, 1).step->needs_global_sums(),
              scope == BalanceScope::global_batch);
    EXPECT_FALSE(Step({options(scope, 0, 0.1), 1}, 2, 2, 1).step->needs_global_sums());
  }
}

// Both losses are linear in what the routers report once the counts are given: the gradient, applied to it,
// gives the loss.
TEST(AuxiliaryLosses, GradientTimesSumsIsTheLoss) {
  for (const BalanceScope scope : kScopes) {
    Routing routing = two_layers();
    const auto values = routing.compute_alone(Losses{options(scope, 0.1, 0.01), 1});
    double balance = 0, z = 0;
    for (const int layer : {0, 1}) {
      for (std::int64_t i = 0; i < 4; ++i)
        balance += routing.dprob(layer)[static_cast<std::size_t>(i)] * routing.prob(layer, i);
      for (std::int64_t b = 0; b < 2; ++b)
        z += routing.dlse2(static_cast<std::size_t>(layer)) * routing.lse2(layer, b);
    }
    EXPECT_NEAR(values.balance, balance, kRounding);
    EXPECT_NEAR(values.z, z, kRounding);
  }
}

// Four sequences of unequal length, three experts, two slots, two layers.
Routing four_sequences() {
  Routing routing(2, 3, {5, 5, 2, 4});
  routing.set(0, {5, 3, 2, 0, 5, 5, 2, 2, 0, 4, 1, 3}, {2, 2, 1, 0.5, 2, 2.5, 1, 0.75, 0.25, 2, 0.5, 1.5},
              {3, 4, 1, 7}, {2, 3, 1, 1.5});
  routing.set(1, {1, 4, 5, 2, 4, 4, 2, 0, 2, 3, 3, 2}, {1, 2, 2, 1.5, 1.5, 2, 0.5, 0.5, 1, 1, 2, 1},
              {2, 1, 6, 5}, {1.5, 2, 1, 2});
  return routing;
}

class Cutting : public ::testing::TestWithParam<std::size_t> {};  // sequences a micro-batch

TEST_P(Cutting, IntoMicroBatchesChangesNothing) {
  for (const BalanceScope scope : {BalanceScope::global_batch, BalanceScope::sequence}) {
    Routing whole = four_sequences();
    const Losses losses{options(scope, 0.3, 0.02, 0.7), 2};
    const auto expected = whole.compute_alone(losses);
    const std::vector<double> count_LE = whole.counts();
    LossValues sum;
    for (std::size_t first = 0; first < 4; first += GetParam()) {
      Routing micro = whole.part(first, GetParam());
      const auto values = micro.compute(losses, 16, 4, count_LE);
      sum.balance += values.balance;
      sum.z += values.z;
      sum.variance += values.variance;
      EXPECT_EQ(micro.dprob2(), whole.dprob2());
      for (const int layer : {0, 1}) {
        const std::vector<double> all = whole.dprob(layer);
        EXPECT_TRUE(test::all_near(micro.dprob(layer),
                                   {all.begin() + 3 * first, all.begin() + 3 * (first + GetParam())}, kRounding,
                                   0));
        EXPECT_EQ(micro.dlse2(static_cast<std::size_t>(layer)), whole.dlse2(static_cast<std::size_t>(layer)));
      }
    }
    EXPECT_NEAR(sum.balance, expected.balance, kRounding);
    EXPECT_NEAR(sum.z, expected.z, kRounding);
    EXPECT_NEAR(sum.variance, expected.variance, kRounding);
  }
}

INSTANTIATE_TEST_SUITE_P(AuxiliaryLosses, Cutting, ::testing::Values(1u, 2u, 4u));

// The counts of the other scopes are the micro-batch's own. What holds for them: a micro-batch weighs as much
// as it has tokens.
TEST(AuxiliaryLosses, TwoEqualMicroBatchesAreOneTwiceAsLong) {
  for (const BalanceScope scope : kScopes) {
    Routing routing = four_sequences();
    const Losses losses{options(scope, 0.3, 0.02, 0.7), 2};
    const auto alone = routing.compute_alone(losses);
    std::vector<double> count_LE = routing.counts();
    for (double& count : count_LE) count *= 2;
    const auto half = routing.compute(losses, 32, 8, count_LE);
    EXPECT_NEAR(2 * half.balance, alone.balance, kRounding);
    EXPECT_NEAR(2 * half.z, alone.z, kRounding);
    EXPECT_NEAR(2 * half.variance, alone.variance, kRounding);
  }
}

TEST(AuxiliaryLosses, ASequenceOfPaddingCountsNowhere) {
  for (const BalanceScope scope : kScopes) {
    Routing bare = two_layers(), padded(2, 2, {3, 0, 1});
    padded.set(0, {2, 1, 0, 0, 1, 0}, {1.8, 1.2, 0, 0, 0.7, 0.3}, {6, 0, 2}, {1.9, 0, 0.58});
    padded.set(1, {1, 2, 0, 0, 1, 0}, {0.6, 2.4, 0, 0, 0.5, 0.5}, {3, 0, 1}, {2.1, 0, 0.5});
    const Losses losses{options(scope, 0.3, 0.02, 0.7), 1};
    const std::vector<double> count_LE = bare.counts();
    const auto expected = bare.compute(losses, 4, 2, count_LE), actual = padded.compute(losses, 4, 2, count_LE);
    EXPECT_EQ(actual.balance, expected.balance);
    EXPECT_EQ(actual.z, expected.z);
    EXPECT_EQ(actual.variance, expected.variance);
    for (const int layer : {0, 1}) {
      const auto without = bare.dprob(layer), with = padded.dprob(layer);
      EXPECT_EQ((std::vector<double>{with[0], with[1], with[4], with[5]}), without);
      // No token reads these; they must still be numbers.
      EXPECT_EQ(with[2], 0.0);
      EXPECT_EQ(with[3], 0.0);
    }
  }
}

TEST(RoutingStep, AddsMicroBatchesUpFromZero) {
  Context ctx;
  Step with({options(BalanceScope::layer, 0.1, 0), 1}, 2, 2, 2);
  RoutingStep& step = *with.step;
  EXPECT_EQ(step.n_main_layers(), 2);
  for (int again = 0; again < 2; ++again) {
    step.begin(ctx);
    test::fill(step.counts().count_LBE, {1, 2, 3, 4, 0, 1, 5, 0});
    step.add_micro_batch(ctx);
    test::fill(step.counts().count_LBE, {1, 0, 0, 0, 0, 0, 0, 7});
    step.add_micro_batch(ctx);
    EXPECT_EQ(test::values(step.global_sums()), (std::vector<double>{5, 6, 5, 8}));
  }
}

// What a model for evaluation has: the layers count, and nothing else is reserved.
TEST(RoutingStep, WithoutTrainingThereAreCountsAlone) {
  Step with({options(BalanceScope::layer, 0.1, 0), 1}, 2, 2, 2);
  Arena training = Arena::measuring(), evaluating = Arena::measuring();
  with.step->plan(training, 2, true);
  with.step->plan(evaluating, 2, false);
  EXPECT_LT(evaluating.peak(), training.peak());
  EXPECT_TRUE(with.step->counts().count_LBE.defined());
}

}  // namespace
}  // namespace switchyard::router
