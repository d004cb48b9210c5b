// A model whose experts are shared by ranks, which are threads here, against the same model on one rank: in
// double, so that what is left of a difference is rounding.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "config/layouts.h"
#include "gradient_check.h"
#include "model_test_support.h"
#include "threads.h"
#include "world_threads.h"

namespace switchyard::model {
namespace {

using parallel::Traffic;
using parallel::World;
using Way = parallel::TokenExchange::Way;

constexpr std::int64_t kSeq = 2, kLen = 6;  // a micro-batch
constexpr int kMicro = 2;                   // of each rank in a step

struct Scene {
  config::Model model;
  config::Router router;
  config::Recompute recompute = config::Recompute::none;
  // Makes of the weights what a case is about.
  std::function<void(ParameterStore&)> change = [](ParameterStore&) {};
  std::function<bool(int)> is_padding = [](int) { return false; };  // all of a micro-batch
};

config::Router router_of(const std::string& type, const config::Model& model) {
  config::Router router = config::default_of(config::schema_of(type, router::router_schemas()), model);
  router.balance_coef = 0.3;
  return router;
}

// Tokens that differ from one micro-batch of the step to the next, with some padding.
TestBatch batch_of(const Scene& scene, int number) {
  TestBatch batch(kSeq, kLen);
  if (scene.is_padding(number)) return batch;
  const auto token = [&](int i) { return (7 * number + 3 * i + i * i) % 11; };
  std::vector<int> first, second;
  for (int i = 0; i < 6; ++i) first.push_back(token(i));
  for (int i = 6; i < 10; ++i) second.push_back(token(i));
  return std::move(batch.sequence(0, first).sequence(1, second));
}

// What a step computes.
struct Result {
  std::vector<std::vector<double>> losses;           // of each micro-batch: all terms, and each token's
  std::map<std::string, std::vector<double>> grads;  // of what is here
  std::vector<double> sums;                          // of routing, over the step
  double need = 0, room = 0;
};

// A rank's model, or that of the only one.
class Member {
 public:
  Member(const Scene& scene, const parallel::Mesh* mesh, Way way, double room, bool training = true)
      : mesh_(mesh), model_(scene.model, scene.router, DType::f64, training), scene_(scene) {
    if (mesh != nullptr) {
      model_.parameters().place({.place = mesh->all.place(),
                                 .size = mesh->all.size(),
                                 .expert_place = mesh->expert.place(),
                                 .expert_size = mesh->expert.size(),
                                 .replica_place = mesh->replicas.place(),
                                 .replica_size = mesh->replicas.size()});
      model_.share_experts(mesh->expert, way, room);
    }
    model_.measure_activations(kSeq, kLen, scene.recompute);
    model_.allocate();
    ParameterStore& store = model_.parameters();
    for (std::size_t i = 0; i < store.rows().size(); ++i) {
      if (!store.is_here(i)) continue;
      const bool norm = store.rows()[i].init == Init::ones;
      test::fill_normal(store.value(i), store.rows()[i].name, norm ? 0.2 : 0.5, norm ? 1.0 : 0.0);
    }
    scene.change(store);
    model_.plan(kSeq, kLen, ctx_, scene.recompute);
    ctx_.scratch.set_poison(true);
  }

  Transformer& model() { return model_; }

  // Micro-batches [first, last) of a step of `total`.
  Result step(int first, int last, int total) {
    router::RoutingStep& routing = model_.routing();
    model_.poison_activations(ctx_);
    test::fill(model_.parameters().grads(),
               std::vector<double>(static_cast<std::size_t>(model_.parameters().grads().numel())));
    if (model_.largest_need_1().defined()) test::set(model_.largest_need_1(), 0, 0);
    GlobalBatch global{.n_tokens = 0, .n_sequences = total * kSeq};
    for (int n = 0; n < total; ++n) global.n_tokens += batch_of(scene_, n).tokens();
    routing.begin(ctx_);
    for (int n = first; n < last; ++n) {
      forward(n);
      routing.add_micro_batch(ctx_);
    }
    const Tensor sums = routing.global_sums();
    if (mesh_ != nullptr) mesh_->all.sum(sums, Traffic::sums, ctx_);
    Result result;
    for (int n = first; n < last; ++n) result.losses.push_back(backward(n, global));
    const ParameterStore& store = model_.parameters();
    for (std::size_t i = 0; i < store.rows().size(); ++i)
      if (store.is_here(i)) result.grads[store.rows()[i].name] = test::values(store.grad(i));
    result.sums = test::values(sums);
    if (model_.largest_need_1().defined()) result.need = test::get(model_.largest_need_1(), 0);
    result.room = static_cast<double>(model_.expert_room());
    return result;
  }

  // Forward alone, as an evaluation does it: the loss of each token.
  std::vector<double> losses_of(int number) {
    forward(number);
    const test::OwnedTensor loss_T({kSeq * kLen}, DType::f64);
    model_.loss(loss_T, batch_->batch(), ctx_);
    return test::values(loss_T);
  }

 private:
  void forward(int number) {
    batch_ = std::make_unique<TestBatch>(batch_of(scene_, number));
    test::fill(rng_offset_2_, {3, static_cast<double>(number * kSeq)});
    model_.forward(seen(), ctx_);
    model_.forward_mtp(seen(), ctx_);
  }
  Batch seen() const {
    Batch batch = batch_->batch();
    batch.training = true;
    batch.seed = 5;
    batch.rng_offset_2 = rng_offset_2_;
    return batch;
  }
  std::vector<double> backward(int number, const GlobalBatch& global) {
    forward(number);
    const test::OwnedTensor loss_T({kSeq * kLen}, DType::f64),
        mtp_loss_KT({std::max<std::int64_t>(1, model_.n_mtp_depths()), kSeq * kLen}, DType::f64);
    const test::OwnedTensor loss_3 = test::doubles({0, 0, 0});
    model_.routing().add_losses(loss_3, seen().tokens_B,
                                {.n_tokens = global.n_tokens, .n_sequences = global.n_sequences}, ctx_);
    const std::vector<double> mtp_dloss_K(static_cast<std::size_t>(model_.n_mtp_depths()), 0.3);
    const MtpLoss mtp{mtp_loss_KT, mtp_dloss_K};
    model_.loss_and_backward(loss_T, seen(), 1.0 / static_cast<double>(global.n_tokens), ctx_,
                             mtp_dloss_K.empty() ? nullptr : &mtp);
    std::vector<double> all = test::values(loss_3);
    for (const double value : test::values(loss_T)) all.push_back(value);
    if (!mtp_dloss_K.empty())
      for (const double value : test::values(mtp_loss_KT)) all.push_back(value);
    return all;
  }

  const parallel::Mesh* mesh_;
  Transformer model_;
  Context ctx_;
  Scene scene_;
  std::unique_ptr<TestBatch> batch_;
  test::OwnedTensor rng_offset_2_ = test::ints({0, 0});
};

Result alone(const Scene& scene, int ranks) {
  return test::with_threads(
      1, [&] { return Member(scene, nullptr, Way::all, 1).step(0, kMicro * ranks, kMicro * ranks); });
}

constexpr double kWorst = std::numeric_limits<double>::infinity();

// The same step by `ranks` ranks in expert groups of e: of each rank, done `steps` times over, the last one's.
std::vector<Result> shared(const Scene& scene, int ranks, int e, Way way, int steps = 1, double room = kWorst,
                           std::int64_t rounds = 1) {
  std::vector<Result> result_R(static_cast<std::size_t>(ranks));
  test::on_world_threads(ranks, [&](World& world) {
    const parallel::Mesh mesh = parallel::make_mesh(world, e);
    Member member(scene, &mesh, way, room);
    if (rounds > 1) member.model().set_rounds(rounds);
    for (int s = 0; s < steps; ++s)
      result_R[static_cast<std::size_t>(world.rank())] =
          member.step(kMicro * world.rank(), kMicro * (world.rank() + 1), kMicro * ranks);
  });
  return result_R;
}

// Gradients are sums over ranks: of dense rows over all, of an expert's over those that hold it.
std::map<std::string, std::vector<double>> sum_of_grads(const std::vector<Result>& result_R) {
  std::map<std::string, std::vector<double>> sums;
  for (const Result& result : result_R)
    for (const auto& [name, grad] : result.grads) {
      std::vector<double>& sum = sums[name];
      sum.resize(grad.size());
      for (std::size_t i = 0; i < grad.size(); ++i) sum[i] += grad[i];
    }
  return sums;
}

// Sums of some hundred terms of order one, added in another order: rounding of some 1e-15 a term.
constexpr double kRounding = 1e-12;

void expect_equal(const std::vector<Result>& result_R, const Result& one) {
  ASSERT_FALSE(::testing::Test::HasFailure()) << "a rank has failed";
  const auto sums = sum_of_grads(result_R);
  ASSERT_EQ(sums.size(), one.grads.size());
  for (const auto& [name, grad] : one.grads)
    EXPECT_TRUE(test::all_near(sums.at(name), grad, kRounding, kRounding)) << name;
  std::size_t micro = 0;
  for (const Result& result : result_R) {
    EXPECT_TRUE(test::all_near(result.sums, one.sums, kRounding, kRounding)) << "sums of routing";
    for (const std::vector<double>& losses : result.losses)
      EXPECT_TRUE(test::all_near(losses, one.losses[micro++], kRounding, kRounding)) << "losses";
  }
}

void expect_same_bits(const std::vector<Result>& a_R, const std::vector<Result>& b_R) {
  for (std::size_t r = 0; r < a_R.size(); ++r) {
    EXPECT_EQ(a_R[r].losses, b_R[r].losses) << "rank " << r;
    for (const auto& [name, grad] : a_R[r].grads) EXPECT_EQ(grad, b_R[r].grads.at(name)) << r << ' ' << name;
  }
}

struct Groups {
  int ranks, e;
};

// All layouts of ranks that matter: two and four to a group, and two groups of two. Poisoned memory, a second
// step in it, and both ways for tokens to move.
void expect_equal_to_one_rank(const Scene& scene, std::vector<Groups> groups = {{2, 2}, {4, 4}, {4, 2}}) {
  for (const Groups& g : groups) {
    SCOPED_TRACE(::testing::Message() << g.ranks << " ranks, groups of " << g.e);
    const Result one = alone(scene, g.ranks);
    const std::vector<Result> all = shared(scene, g.ranks, g.e, Way::all);
    expect_equal(all, one);
    // What a rank has no part in adds nothing, so that both ways add the same numbers in the same order.
    expect_same_bits(shared(scene, g.ranks, g.e, Way::rows, 2), all);
  }
}

struct Case {
  std::string name;
  Scene scene;
};

config::Model changed(const config::Layout& layout, const std::function<void(config::Model&)>& change) {
  config::Model model = tiny_model(layout);
  change(model);
  return model;
}

Scene routed(
    const std::string& type, const config::RouterOptions& own = {},
    const std::function<void(config::Router&)>& change = [](config::Router&) {}) {
  Scene scene{.model = tiny_model(config::kQwen3Moe), .router = {}};
  scene.router = router_of(type, scene.model);
  for (const auto& [key, value] : own.all()) scene.router.own.set(key, value);
  change(scene.router);
  return scene;
}

Scene of_layout(const config::Model& model, config::BalanceScope scope,
                config::Recompute recompute = config::Recompute::none) {
  config::Router losses = all_losses(scope);
  losses.orthogonality_coef = 0;  // which looks at a token's outputs together
  return {.model = model, .router = default_router(*model.layout, losses), .recompute = recompute};
}

std::vector<Case> cases() {
  using config::BalanceScope, config::Recompute;
  using config::kDeepseekV3, config::kMixtral, config::kQwen3Moe;
  const std::int64_t three = 3;
  const auto with_mtp = [](config::Model& model) { model.num_nextn_predict_layers = 2; };
  std::vector<Case> all = {
      {"SigmoidGroup", routed("sigmoid_group")},
      {"Quantile", routed("quantile")},
      {"TopP", routed("top_p", {{"max_experts", three}})},
      {"DynamicKNorm", routed("dynamic_k", {{"max_experts", three}})},
      {"DynamicKAttention", routed("dynamic_k", {{"estimator", "attention_entropy"}, {"max_experts", three}})},
      {"ExpertThreshold", routed("expert_threshold", {{"max_experts", three}})},
      {"KMeans", routed("kmeans")},
      {"Lpr", routed("lpr", {{"latent_dim", three}})},
      {"LprDot", routed("lpr", {{"latent_dim", three}, {"similarity", "dot"}, {"reg_coef", 0.1}})},
      {"Capacity", routed("softmax_topk", {}, [](config::Router& router) { router.capacity_factor = 1.0; })},
      {"Jitter", routed("softmax_topk", {}, [](config::Router& router) { router.jitter = 0.3; })},
      {"ScopeLayer", of_layout(tiny_model(kQwen3Moe), BalanceScope::layer)},
      {"ScopeSequence", of_layout(tiny_model(kQwen3Moe), BalanceScope::sequence)},
      {"ScopeModel", of_layout(tiny_model(kMixtral), BalanceScope::model)},
      {"ScopeGlobalBatch", of_layout(tiny_model(kMixtral), BalanceScope::global_batch)},
      {"SharedExperts", of_layout(tiny_model(kDeepseekV3), BalanceScope::sequence)},
      {"OneDenseLayer", of_layout(changed(kQwen3Moe,
                                          [](config::Model& model) {
                                            config::set_layers(model, {false, true});
                                          }),
                                  BalanceScope::layer)},
      {"Mtp", of_layout(changed(kDeepseekV3, with_mtp), BalanceScope::global_batch)},
      {"RecomputeSwiglu", of_layout(tiny_model(kDeepseekV3), BalanceScope::sequence, Recompute::swiglu)},
      {"RecomputeBlock", of_layout(tiny_model(kQwen3Moe), BalanceScope::global_batch, Recompute::block)},
      {"RecomputeBlockMtp",
       of_layout(changed(kDeepseekV3, with_mtp), BalanceScope::sequence, Recompute::block)},
  };
  return all;
}

class ExpertParallel : public ::testing::TestWithParam<Case> {};

TEST_P(ExpertParallel, EqualsOneRank) { expect_equal_to_one_rank(GetParam().scene); }

INSTANTIATE_TEST_SUITE_P(Scenes, ExpertParallel, ::testing::ValuesIn(cases()),
                         [](const auto& test) { return test.param.name; });

Scene of_six_experts() {
  return of_layout(changed(config::kQwen3Moe, [](config::Model& model) { model.num_experts = 6; }),
                   config::BalanceScope::global_batch);
}

TEST(ExpertParallelGroups, ThreeRanksAndSix) {
  expect_equal_to_one_rank(of_six_experts(), {{3, 3}, {6, 3}, {6, 6}});
}

TEST(ExpertParallelGroups, AGroupOfOneRankEqualsThatRankBitForBit) {
  const Scene scene = of_layout(tiny_model(config::kDeepseekV3), config::BalanceScope::sequence);
  const Result one = alone(scene, 1);
  for (const Way way : {Way::all, Way::rows}) {
    const std::vector<Result> shared_R = shared(scene, 1, 1, way);
    EXPECT_EQ(shared_R[0].losses, one.losses);
    EXPECT_EQ(shared_R[0].grads, one.grads);
  }
}

TEST(ExpertParallelGroups, PartsAreEqualOrRefused) {
  const Scene scene = of_layout(tiny_model(config::kQwen3Moe), config::BalanceScope::layer);
  for (const std::string& error : test::errors_of_ranks(3, [&](World& world) {
         const parallel::Mesh mesh = parallel::make_mesh(world, 3);
         Member(scene, &mesh, Way::all, kWorst);
       }))
    EXPECT_NE(error.find("3 ranks do not divide 4 experts"), std::string::npos) << error;
}

// Experts 1 to 3 have equal scores of every token, and two of them or one are chosen: by their numbers alone. A
// block that is made again chooses the same ones, whose weights differ, or the bits of gradients would not be
// those of blocks that are kept.
TEST(ExpertParallelTies, AreDecidedAgainAsTheFirstTime) {
  for (const Way way : {Way::all, Way::rows}) {
    Scene scene = of_layout(tiny_model(config::kQwen3Moe), config::BalanceScope::sequence);
    ASSERT_EQ(scene.model.num_experts, 4);
    ASSERT_EQ(scene.model.num_experts_per_tok, 2);
    scene.change = [](ParameterStore& store) {
      for (std::size_t i = 0; i < store.rows().size(); ++i) {
        if (!store.rows()[i].name.ends_with("mlp.gate.weight") || !store.is_here(i)) continue;
        const Tensor weight_ED = store.value(i);
        for (const std::int64_t e : {2, 3})
          test::fill(weight_ED.slice(e, 1), test::values(weight_ED.slice(1, 1)));
      }
    };
    const std::vector<Result> kept_R = shared(scene, 2, 2, way);
    scene.recompute = config::Recompute::block;
    const std::vector<Result> again_R = shared(scene, 2, 2, way);
    expect_same_bits(again_R, kept_R);
    // Counts come first, by layer and expert: the last of those that tie is never chosen, the first one always.
    const std::vector<double>& count_LE = again_R[0].sums;
    for (std::int64_t l = 0; l < scene.model.num_hidden_layers; ++l) {
      const double* const count_E = count_LE.data() + 4 * l;
      EXPECT_EQ(count_E[3], 0);
      EXPECT_GT(count_E[2], 0) << "no token has chosen two of those that tie, one on each rank";
      EXPECT_EQ(count_E[0] + count_E[1] + count_E[2], 2 * kMicro * 2 * 10) << "10 tokens a micro-batch";
    }
  }
}

// A rank whose tokens are all padding, and one without any of the group's.
TEST(ExpertParallelTokens, RanksWithoutAnyTakePart) {
  for (const config::Layout* layout : {&config::kQwen3Moe, &config::kDeepseekV3}) {
    Scene scene = of_layout(tiny_model(*layout), config::BalanceScope::sequence);
    scene.is_padding = [](int number) { return number / kMicro % 2 == 1; };
    expect_equal_to_one_rank(scene);
    scene.is_padding = [](int number) { return number != 1; };
    expect_equal_to_one_rank(scene);
  }
}

// Every token goes to experts 0 and 1: with two ranks the first one has all the work, with four the last two
// have none.
Scene all_to_two_experts() {
  Scene scene = routed("sigmoid_group");
  scene.change = [](ParameterStore& store) {
    for (std::size_t i = 0; i < store.rows().size(); ++i)
      if (!store.rows()[i].trained) test::fill(store.value(i), {9, 8, 0, 0});
  };
  return scene;
}
constexpr double kTokens = 10;  // of a micro-batch, without padding

TEST(ExpertParallelTokens, AllToTheExpertsOfOneRank) {
  const Scene scene = all_to_two_experts();
  expect_equal_to_one_rank(scene);
  const std::vector<Result> shared_R = shared(scene, 2, 2, Way::rows);
  EXPECT_EQ(shared_R[0].need, 2 * kTokens * 2);
  EXPECT_EQ(shared_R[1].need, 0);
  for (const auto& [name, grad] : shared_R[1].grads) {
    if (name.find(".experts.") == std::string::npos) continue;
    EXPECT_TRUE(std::all_of(grad.begin(), grad.end(), [](double g) { return g == 0; })) << name;
  }
}

// A model made for evaluation, whose blocks share memory.
TEST(ExpertParallelEvaluation, LossesAreThoseOfOneRank) {
  for (const config::Layout* layout : {&config::kMixtral, &config::kDeepseekV3}) {
    Scene scene = of_layout(tiny_model(*layout), config::BalanceScope::layer);
    scene.is_padding = [](int number) { return number == 3; };
    std::vector<std::vector<double>> losses;
    Member one(scene, nullptr, Way::all, 1, false);
    for (int number = 0; number < 4; ++number) losses.push_back(one.losses_of(number));
    for (const Way way : {Way::all, Way::rows})
      test::on_world_threads(4, [&](World& world) {
        const parallel::Mesh mesh = parallel::make_mesh(world, 4);
        Member member(scene, &mesh, way, kWorst, false);
        for (int turn = 0; turn < 2; ++turn) {
          const int number = (world.rank() + turn) % 4;
          EXPECT_TRUE(test::all_near(member.losses_of(number), losses[static_cast<std::size_t>(number)],
                                     kRounding, kRounding));
        }
      });
  }
}

// The gradient of the sum of all ranks' losses by central differences, for some elements of every tensor:
// tokens of one rank move weights of another.
void expect_finite_differences(const Scene& scene, Way way) {
  constexpr int kRanks = 2;
  test::on_world_threads(kRanks, [&](World& world) {
    const parallel::Mesh mesh = parallel::make_mesh(world, kRanks);
    Member member(scene, &mesh, way, kWorst);
    const auto step = [&] {
      return member.step(kMicro * world.rank(), kMicro * (world.rank() + 1), kMicro * kRanks);
    };
    Context ctx;
    const auto sum_over_ranks = [&](double x) {
      mesh.all.sum(Tensor(&x, Shape{1}, DType::f64), Traffic::sums, ctx);
      return x;
    };
    const auto loss = [&] {
      double sum = 0;
      for (const std::vector<double>& of_micro : step().losses)
        for (std::size_t i = 0; i < of_micro.size(); ++i)
          sum += i < 3 ? of_micro[i] : of_micro[i] / (kTokens * kMicro * kRanks);
      return sum_over_ranks(sum);
    };
    const Result result = step();
    ParameterStore& store = member.model().parameters();
    for (std::size_t row = 0; row < store.rows().size(); ++row) {
      const Parameter& parameter = store.rows()[row];
      if (!parameter.trained) continue;
      const std::int64_t n = parameter.shape.numel(), stride = std::max<std::int64_t>(1, n / 2);
      for (std::int64_t i = 0; i < n; i += stride) {
        const bool here = store.is_here(row);
        const double before = here ? test::get(store.value(row), i) : 0;
        constexpr double kStep = 1e-5;
        const auto loss_at = [&](double moved) {
          if (here) test::set(store.value(row), i, before + moved);
          return loss();
        };
        const double numeric = (loss_at(kStep) - loss_at(-kStep)) / (2 * kStep);
        loss_at(0);
        const double analytic =
            sum_over_ranks(here ? result.grads.at(parameter.name)[static_cast<std::size_t>(i)] : 0);
        // As GradientTolerance: the difference is off by step^2 / 6 and by rounding over the step.
        EXPECT_NEAR(analytic, numeric, 1e-8 + 1e-6 * std::abs(numeric)) << parameter.name << ' ' << i;
      }
    }
  });
}

TEST(ExpertParallelGradient, MatchesFiniteDifferencesThroughTheExchange) {
  expect_finite_differences(of_layout(tiny_model(config::kQwen3Moe), config::BalanceScope::layer), Way::rows);
  // Without its own losses, through some of whose terms no gradient goes by intent.
  expect_finite_differences(routed("lpr", {{"latent_dim", std::int64_t{3}}, {"reg_coef", 0.0}}), Way::all);
}

// ---- room and rounds ----

TEST(ExpertRoom, WhatDoesNotFitIsReportedAndFitsInRounds) {
  Scene scene = all_to_two_experts();
  for (const config::Recompute recompute :
       {config::Recompute::none, config::Recompute::swiglu, config::Recompute::block}) {
    SCOPED_TRACE(static_cast<int>(recompute));
    scene.recompute = recompute;
    const Result one = alone(scene, 2);
    for (const Way way : {Way::all, Way::rows}) {
      // Room for an even load, 12 tokens of 2 slots, where twice the tokens that are no padding come.
      const std::vector<Result> short_R = shared(scene, 2, 2, way, 1, 1.0);
      EXPECT_EQ(short_R[0].room, 24);
      EXPECT_EQ(short_R[0].need, 40);
      EXPECT_EQ(short_R[1].need, 0);
      const std::vector<Result> again_R = shared(scene, 2, 2, way, 1, 1.0, 2);
      EXPECT_LE(again_R[0].need, again_R[0].room);
      expect_equal(again_R, one);
      expect_same_bits(shared(scene, 2, 2, way, 2, 1.0, 2), again_R);
    }
  }
}

// Rounds of unequal sizes, of one token, and more of them than tokens.
TEST(ExpertRoom, AnyNumberOfRoundsGivesTheSame) {
  for (const Scene& scene : {of_layout(tiny_model(config::kDeepseekV3), config::BalanceScope::global_batch),
                             routed("lpr", {{"latent_dim", std::int64_t{3}}}),
                             routed("top_p", {{"max_experts", std::int64_t{3}}})}) {
    const Result one = alone(scene, 2);
    for (const std::int64_t rounds : {2, 5, 12, 16}) {
      SCOPED_TRACE(rounds);
      const std::vector<Result> rounds_R = shared(scene, 2, 2, Way::all, 2, 1.5, rounds);
      expect_equal(rounds_R, one);
      expect_same_bits(shared(scene, 2, 2, Way::rows, 1, 1.5, rounds), rounds_R);
    }
  }
}

TEST(ExpertRoom, IsAtLeastOneTokenOfEachRank) {
  ExpertRanks lone;
  EXPECT_EQ(lone.n_rows(6, 2, 8), 12);
  test::on_world_threads(4, [&](World& world) {
    const parallel::Mesh mesh = parallel::make_mesh(world, 4);
    ExpertRanks ranks{.group = &mesh.expert};
    EXPECT_EQ(ranks.n_rows(6, 2, 8), 4 * 6 * 2);  // two experts here: both slots of all tokens
    EXPECT_EQ(ranks.n_rows(6, 2, 4), 4 * 6);      // one expert here: one slot of each
    ranks.room = 1.3;
    EXPECT_EQ(ranks.n_rows(6, 2, 8), 16);  // 15.6
    EXPECT_EQ(ranks.n_rows(2, 2, 8), 8);   // 5.2, but a token of each rank may need 8
  });
}

// A step that does not fit leaves nothing behind: done again in rounds, and the next one without them.
TEST(ExpertRoom, AStepIsRedoneByTheSameModel) {
  const Scene scene = all_to_two_experts();
  const Result one = alone(scene, 2);
  std::vector<Result> result_R(2);
  test::on_world_threads(2, [&](World& world) {
    const parallel::Mesh mesh = parallel::make_mesh(world, 2);
    Member member(scene, &mesh, Way::rows, 1.0);
    const auto step = [&] { return member.step(kMicro * world.rank(), kMicro * (world.rank() + 1), 4); };
    step();
    member.model().set_rounds(2);
    result_R[static_cast<std::size_t>(world.rank())] = step();
    member.model().set_rounds(1);
    step();
  });
  expect_equal(result_R, one);
}

}  // namespace
}  // namespace switchyard::model
