// Every router in whole runs: it learns in every layout, does not care how a batch is cut, and goes on bit for
// bit.
#include <gtest/gtest.h>

#include <cmath>
#include <sstream>

#include "config/layouts.h"
#include "config/load.h"
#include "config/names.h"
#include "core/rng.h"
#include "example_router.h"
#include "json_values.h"
#include "router/router.h"
#include "run_samples.h"
#include "shards.h"
#include "tensors.h"
#include "threads.h"
#include "train/run.h"

namespace switchyard::train {
namespace {

using checkpoint::Checkpoint;
using checkpoint::checkpoint_path;
using checkpoint::find_latest;
using namespace test;

struct Case {
  std::string name;
  std::string type;
  config::RouterOptions own{};
  bool settles = false;         // evaluations and saves move what the router keeps
  bool by_micro_batch = false;  // a micro-batch is balanced by itself
  double logit_norm = 0;
  std::int64_t num_hash_layers = 0;
};

std::vector<Case> cases() {
  const std::int64_t three = 3;
  return {
      {"SoftmaxTopK", "softmax_topk"},
      {"SoftmaxTopKSimBal", "softmax_topk", {{"simbal_coef", 0.01}}},
      {"SoftmaxTopKLogitNorm", "softmax_topk", {}, false, false, 1.5},
      {"SoftmaxTopKHash", "softmax_topk", {}, false, false, 0, 1},
      {"LprHash", "lpr", {{"latent_dim", three}}, false, false, 0, 1},
      {"SigmoidGroupSqrtSoftplus", "sigmoid_group", {{"score_function", "sqrtsoftplus"}}},
      {"QuantileSqrtSoftplus", "quantile", {{"score_function", "sqrtsoftplus"}}},
      {"SigmoidGroup", "sigmoid_group"},
      {"SigmoidGroupMeanFree", "sigmoid_group", {{"bias_mean_free", true}, {"bias_update_speed", 0.05}}},
      {"SigmoidGroupSmebu", "sigmoid_group", {{"bias", "smebu"}, {"bias_update_speed", 0.05}}},
      {"SigmoidGroupPhi", "sigmoid_group", {{"bias", "phi"}, {"phi_decay", 0.5}}},
      {"Quantile", "quantile"},
      {"QuantileSmebu", "quantile", {{"bias", "smebu"}, {"bias_update_speed", 0.05}}},
      {"QuantilePhiSimBal", "quantile", {{"bias", "phi"}, {"score_function", "softmax"}, {"simbal_coef", 0.1}}},
      {"QuantileSoftmax", "quantile", {{"score_function", "softmax"}, {"bias_ema", 0.5}}},
      {"QuantileSettled", "quantile", {{"bias_ema", 0.5}, {"settle_tokens", std::int64_t{100}}}, true},
      {"QuantileSolved", "quantile", {{"bias_ema", 0.5}, {"bias_solves", std::int64_t{2}}}, false, true},
      {"TopP", "top_p", {{"max_experts", three}}},
      {"DynamicKNorm", "dynamic_k", {{"max_experts", three}}},
      {"DynamicKAttention", "dynamic_k", {{"estimator", "attention_entropy"}, {"max_experts", three}}},
      {"DynamicKRouterEntropy", "dynamic_k", {{"estimator", "router_entropy"}, {"max_experts", three}}},
      {"DynamicKHiddenEntropy", "dynamic_k", {{"estimator", "hidden_entropy"}, {"max_experts", three}}},
      {"DynamicKLossGradient", "dynamic_k", {{"estimator", "loss_gradient"}, {"max_experts", three}}},
      {"DynamicKThreshold", "dynamic_k", {{"estimator", "threshold"}, {"threshold", 2.8}}},
      {"ExpertThreshold", "expert_threshold", {{"max_experts", three}, {"threshold_decay", 0.5}}},
      {"ExpertThresholdSettled",
       "expert_threshold",
       {{"max_experts", three}, {"settle_tokens", std::int64_t{100}}},
       true},
      {"KMeans", "kmeans"},
      {"Lpr", "lpr", {{"latent_dim", three}}},
      {"LprDot", "lpr", {{"latent_dim", three}, {"similarity", "dot"}, {"reg_coef", 0.1}}},
      {"LprAverageBias", "lpr", {{"latent_dim", three}, {"key_update", "ema"}, {"bias", "quantile"}}},
      {"LprNoAddend", "lpr", {{"latent_dim", three}, {"prototype_addend", false}, {"bias", "quantile"}}},
      {"LprNoRouting", "lpr", {{"latent_dim", three}, {"prototype_routing", false}, {"bias", "quantile"}}},
      {"LprSign", "lpr", {{"latent_dim", three}, {"bias", "sign"}}},
      {"LprSmebu", "lpr", {{"latent_dim", three}, {"bias", "smebu"}}},
      {"LprPhi", "lpr", {{"latent_dim", three}, {"bias", "phi"}}},
      {"LprSolvedAndSettled",
       "lpr",
       {{"latent_dim", three},
        {"bias", "quantile"},
        {"bias_solves", std::int64_t{1}},
        {"settle_tokens", std::int64_t{1}}},
       true,
       true},
      {"LprDistance", "lpr", {{"latent_dim", three}, {"similarity", "hellinger"}, {"unit_ball", true}}},
      {"Example", "example"}};
}

class Routers : public ::testing::TestWithParam<Case> {
 protected:
  Routers() {
    [[maybe_unused]] static const bool added = (router::add_router(router::example_router()), true);
    std::vector<std::uint32_t> tokens = {1};
    const Rng rng(9, RngPurpose::shuffle, 0);
    for (std::uint64_t i = 0; i < 999; ++i)
      tokens.push_back(rng.uniform(i) < 0.9 ? (3 * tokens.back() + 1) % 31
                                            : static_cast<std::uint32_t>(rng.bits(i) % 31));
    test::write_shard(dir_ / "train.bin", tokens);
    tokens.resize(50);
    test::write_shard(dir_ / "val.bin", tokens);
  }

  config::Run run(const config::Layout& layout = config::kQwen3Moe) const {
    config::Run run = small_run();
    run.model.layout = &layout;
    run.model.qk_norm = layout == config::kQwen3Moe ? config::QkNorm::head : config::QkNorm::none;
    run.model.num_hidden_layers = 2;
    config::set_layers(run.model, {true, true});
    run.model.initializer_range = 0.1;
    if (layout == config::kDeepseekV3) {
      run.model.num_key_value_heads = run.model.num_attention_heads;
      run.model.mla = {
          .q_lora_rank = 4, .kv_lora_rank = 4, .qk_nope_head_dim = 2, .qk_rope_head_dim = 2, .v_head_dim = 3};
      config::set_layers(run.model, {true, true});  // latent attention
      run.model.n_shared_experts = 1;
      run.model.n_group = 2;
      run.model.topk_group = 1;
      run.model.routed_scaling_factor = 2.5;
      run.model.rope.interleaved = true;
    }
    run.router = config::default_of(config::schema_of(GetParam().type, router::router_schemas()), run.model);
    for (const auto& [key, value] : GetParam().own.all()) run.router.own.set(key, value);
    run.router.balance_coef = 0.1;
    run.router.logit_norm = GetParam().logit_norm;
    run.router.num_hash_layers = GetParam().num_hash_layers;
    run.data.train = {{(dir_ / "train.bin").string(), "default", std::nullopt}};
    run.data.validation = {{(dir_ / "val.bin").string(), "default", std::nullopt}};
    run.train.steps = 4;
    run.train.seq_len = 8;
    run.train.micro_batch_size = 2;
    run.train.global_batch_size = 4;
    run.train.lr = 0.01;
    run.train.warmup_ratio = 0;
    run.train.schedule = config::Schedule::constant;
    run.checkpoint.keep = 0;
    run.log.every = 1000;
    return run;
  }

  void train(const std::string& name, const config::Run& run, const Resume& resume = {},
             bool stop = false) const {
    const config::Run read =
        config::parse_run(config::to_resolved_json(run), "test", {}, router::router_schemas());
    parallel::World world = parallel::make_lone_world();
    const volatile std::sig_atomic_t stop_requested = stop ? 1 : 0;
    // A team is not worth its start for a model as small as this.
    test::with_threads(1, [&] { return TrainingRun(read, dir_ / name, resume, world).run(stop_requested); });
  }
  std::vector<Json> metrics(const std::string& name) const {
    std::vector<Json> lines;
    std::istringstream text(slurp(dir_ / name / "metrics.jsonl"));
    for (std::string line; std::getline(text, line);) {
      lines.push_back(parsed(line));
      for (const char* key : kOfTheClock) erase(lines.back(), key);
    }
    return lines;
  }
  std::vector<double> weights(const std::string& name, const config::Run& run) const {
    model::Transformer model(run.model, run.router, DType::f32, false);
    model.allocate();
    Checkpoint(checkpoint_path(dir_ / name, run.train.steps)).load_weights(model.parameters());
    return test::values(model.parameters().values());
  }
  TempDir dir_;
};

TEST_P(Routers, LearnInEveryLayout) {
  for (const config::Layout* layout : config::kLayouts) {
    config::Run run = this->run(*layout);
    run.router.balance_coef = 0.01;
    run.train.steps = 60;
    const std::string name(layout->name);
    train(name, run);
    const auto lines = metrics(name);
    ASSERT_EQ(lines.size(), 60u);
    EXPECT_NEAR(lines.front()["loss"].number(), 3.43, 0.3) << name;  // log 31
    EXPECT_LT(lines.back()["loss"].number(), 2.8) << name;
    EXPECT_LT(lines.back()["val_loss"].number(), 2.8) << name;
    EXPECT_LE(lines.back()["flops_per_token"].number(), lines.back()["flops_per_token_static"].number());
    EXPECT_EQ(lines.back()["drop_rate"], 0);
  }
}

// As long as neither capacity nor scope looks at the micro-batch. Jitter is on: its noise belongs to places in
// the global batch.
TEST_P(Routers, OneTimesFourIsFourTimesOne) {
  if (GetParam().by_micro_batch) GTEST_SKIP() << "what it computes is a function of the micro-batch";
  config::Run run = this->run();
  run.router.balance_scope = config::BalanceScope::global_batch;
  run.router.jitter = 0.1;
  run.train.eps = 1e-3;  // AdamW must not make much of a gradient that is all rounding
  train("two", run);
  run.train.micro_batch_size = 1;
  train("one", run);
  run.train.micro_batch_size = 4;
  train("four", run);
  for (const char* name : {"one", "two"}) {
    // Rounding of 1e-7 in a gradient moves a weight by lr * 1e-4 = 1e-6 a step at most; a gradient that depends
    // on the cut moves it by lr, 1e-2. State is summed in double from float32 scores.
    EXPECT_TRUE(test::all_near(weights(name, run), weights("four", run), 1e-4, 2e-5)) << name;
    const auto a = metrics(name), b = metrics("four");
    for (std::size_t i = 0; i < a.size(); ++i)
      for (const char* key : {"loss", "balance_loss", "router_loss", "flops_per_token"})
        EXPECT_NEAR(a[i][key].number(), b[i][key].number(), 1e-5 * std::abs(b[i][key].number()) + 1e-9)
            << name << ", step " << i + 1 << ", " << key;
  }
}

TEST_P(Routers, AResumedRunEndsInTheSameBits) {
  config::Run run = this->run();
  run.router.jitter = 0.1;
  run.router.capacity_factor = 0.8;
  run.train.eval_every = 1;  // must change nothing, apart from what settles
  train("whole", run);
  train("stopped", run, {}, true);
  train("stopped", run, {.wanted = true, .checkpoint = find_latest(dir_ / "stopped")});
  EXPECT_EQ(metrics("stopped"), metrics("whole"));
  for (const char* file : {"model.safetensors", "state.safetensors"})
    EXPECT_TRUE(slurp(checkpoint_path(dir_ / "whole", 4) / file) ==
                slurp(checkpoint_path(dir_ / "stopped", 4) / file))
        << file;
  if (!GetParam().settles) {
    run.train.eval_every = 0;
    train("without", run);
    EXPECT_EQ(weights("without", run), weights("whole", run));
  }
  double dropped = 0;
  for (const Json& line : metrics("whole")) dropped += line["drop_rate"].number();
  EXPECT_GT(dropped, 0);
}

TEST_P(Routers, WithoutALearningRateTheyStayAsTheyBegan) {
  config::Run run = this->run();
  run.train.router_lr_ratio = 0;
  train("still", run);
  model::Transformer begun(run.model, run.router, DType::f32, false),
      ended(run.model, run.router, DType::f32, false);
  begun.allocate();
  begun.parameters().initialise(run.train.seed);
  ended.allocate();
  Checkpoint(checkpoint_path(dir_ / "still", run.train.steps)).load_weights(ended.parameters());
  bool others_moved = false;
  for (std::size_t i = 0; i < begun.parameters().rows().size(); ++i) {
    const Parameter& row = begun.parameters().rows()[i];
    const bool same = test::values(begun.parameters().value(i)) == test::values(ended.parameters().value(i));
    if (!row.of_router) others_moved = others_moved || !same;
    if (row.of_router && row.trained) {
      EXPECT_TRUE(same) << row.name;
    }
  }
  EXPECT_TRUE(others_moved);
}

INSTANTIATE_TEST_SUITE_P(Types, Routers, ::testing::ValuesIn(cases()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace switchyard::train
