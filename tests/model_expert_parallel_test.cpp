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

struct Setup {
  config::Model model;
  config::Router router;
  config::Recompute recompute = config::Recompute::none;
  // Makes of the weights what a case is about.
  std::function<void(ParameterStore&)> change = [](ParameterStore&) {};
  bool some_without_tokens = false;  // every third micro-batch is padding
};

config::Router router_of(const std::string& type, const config::Model& model) {
  config::Router router = config::default_of(config::schema_of(type, router::router_schemas()), model);
  router.balance_coef = 0.3;
  return router;
}

// Tokens that differ from one micro-batch of the step to the next, with some padding.
TestBatch batch_of(const Setup& setup, int number) {
  TestBatch batch(kSeq, kLen);
  if (setup.some_without_tokens && number % 3 == 1) return batch;
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
  Member(const Setup& setup, const parallel::Mesh* mesh, Way way, double room)
      : mesh_(mesh), model_(setup.model, setup.router, DType::f64, true), setup_(setup) {
    if (mesh != nullptr) {
      model_.parameters().place({.place = mesh->all.place(),
                                 .size = mesh->all.size(),
                                 .expert_place = mesh->expert.place(),
                                 .expert_size = mesh->expert.size(),
                                 .replica_place = mesh->replicas.place(),
                                 .replica_size = mesh->replicas.size()});
      model_.share_experts(mesh->expert, way, room);
    }
    model_.measure_activations(kSeq, kLen, setup.recompute);
    model_.allocate();
    ParameterStore& store = model_.parameters();
    for (std::size_t i = 0; i < store.rows().size(); ++i) {
      if (!store.is_here(i)) continue;
      const bool norm = store.rows()[i].init == Init::ones;
      test::fill_normal(store.value(i), store.rows()[i].name, norm ? 0.2 : 0.5, norm ? 1.0 : 0.0);
    }
    setup.change(store);
    model_.plan(kSeq, kLen, ctx_, setup.recompute);
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
    for (int n = 0; n < total; ++n) global.n_tokens += batch_of(setup_, n).tokens();
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
    batch_ = std::make_unique<TestBatch>(batch_of(setup_, number));
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
  Setup setup_;
  std::unique_ptr<TestBatch> batch_;
  test::OwnedTensor rng_offset_2_ = test::ints({0, 0});
};

Result alone(const Setup& setup, int ranks) {
  return test::with_threads(
      1, [&] { return Member(setup, nullptr, Way::all, 1).step(0, kMicro * ranks, kMicro * ranks); });
}

constexpr double kWorst = std::numeric_limits<double>::infinity();

// The same step by `ranks` ranks in expert groups of e: of each rank, done `steps` times over, the last one's.
std::vector<Result> shared(const Setup& setup, int ranks, int e, Way way, int steps = 1, double room = kWorst,
                           std::int64_t rounds = 1) {
  std::vector<Result> result_R(static_cast<std::size_t>(ranks));
  test::on_world_threads(ranks, [&](World& world) {
    const parallel::Mesh mesh = parallel::make_mesh(world, e);
    Member member(setup, &mesh, way, room);
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
void expect_equal_to_one_rank(const Setup& setup, std::vector<Groups> groups = {{2, 2}, {4, 4}, {4, 2}}) {
  for (const Groups& g : groups) {
    SCOPED_TRACE(::testing::Message() << g.ranks << " ranks, groups of " << g.e);
    const Result one = alone(setup, g.ranks);
    const std::vector<Result> all = shared(setup, g.ranks, g.e, Way::all);
    expect_equal(all, one);
    // What a rank has no part in adds nothing, so that both ways add the same numbers in the same order.
    expect_same_bits(shared(setup, g.ranks, g.e, Way::rows, 2), all);
  }
}

struct Case {
  std::string name;
  Setup setup;
};

config::Model changed(const config::Layout& layout, const std::function<void(config::Model&)>& change) {
  config::Model model = tiny_model(layout);
  change(model);
  return model;
}

Setup routed(
    const std::string& type, const config::RouterOptions& own = {},
    const std::function<void(config::Router&)>& change = [](config::Router&) {}) {
  Setup setup{.model = tiny_model(config::kQwen3Moe), .router = {}};
  setup.router = router_of(type, setup.model);
  for (const auto& [key, value] : own.all()) setup.router.own.set(key, value);
  change(setup.router);
  return setup;
}

Setup of_layout(const config::Model& model, config::BalanceScope scope,
                config::Recompute recompute = config::Recompute::none) {
  return {.model = model, .router = default_router(*model.layout, all_losses(scope)), .recompute = recompute};
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

TEST_P(ExpertParallel, EqualsOneRank) { expect_equal_to_one_rank(GetParam().setup); }

INSTANTIATE_TEST_SUITE_P(Setups, ExpertParallel, ::testing::ValuesIn(cases()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace switchyard::model
