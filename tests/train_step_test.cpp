// The global batch of a step on one rank and on two, which are threads here.
#include "config/layouts.h"
#include "train/step.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "config/load.h"
#include "config/router_section.h"
#include "core/rng.h"
#include "router/router.h"
#include "run_samples.h"
#include "shards.h"
#include "tensors.h"
#include "temp_dir.h"
#include "world_threads.h"

namespace switchyard::train {
namespace {

constexpr std::int64_t kSteps = 4;

struct Trained {
  std::vector<double> weights;
  std::vector<StepResult> steps;
};

Trained train(const config::Run& run, parallel::World& world) {
  const TrainingData data(run, parallel::make_mesh(world, 1).all);
  Step step(run, data, world, Device::cpu);
  step.model().parameters().initialise(run.train.seed);
  Trained trained;
  for (std::int64_t s = 0; s < kSteps; ++s) {
    trained.steps.push_back(step.compute(s, static_cast<std::uint64_t>(s * run.train.global_batch_size)));
    step.update(run.train.lr, s + 1);
  }
  trained.weights = test::values(step.model().parameters().values());
  return trained;
}

struct Case {
  std::string name;
  std::string type;
  config::BalanceScope scope;
  std::int64_t micro_batch = 1;  // of a global batch of four
  bool mtp = false;              // DeepSeek-V3 with a depth of multi-token prediction, and documents
};

class Ranks : public ::testing::TestWithParam<Case> {
 protected:
  Ranks() {
    std::vector<std::uint32_t> tokens = {1};
    const Rng rng(9, RngPurpose::shuffle, 0);
    for (std::uint64_t i = 0; i < 999; ++i)
      tokens.push_back(rng.uniform(i) < 0.9 ? (3 * tokens.back() + 1) % 31
                                            : static_cast<std::uint32_t>(rng.bits(i) % 31));
    test::write_shard(dir_ / "a.bin", tokens);
    tokens.resize(300);
    test::write_shard(dir_ / "b.bin", tokens);
  }
  config::Run run() const {
    const Case& given = GetParam();
    config::Run run = test::small_run();
    run.model.num_hidden_layers = 2;
    config::set_layers(run.model, {true, true});
    run.model.initializer_range = 0.1;
    if (given.mtp) {
      run.model.layout = &config::kDeepseekV3;
      run.model.qk_norm = config::QkNorm::none;
      run.model.num_key_value_heads = run.model.num_attention_heads;
      run.model.mla = {
          .q_lora_rank = 4, .kv_lora_rank = 4, .qk_nope_head_dim = 2, .qk_rope_head_dim = 2, .v_head_dim = 3};
      config::set_layers(run.model, {true, true});  // latent attention
      run.model.n_shared_experts = 1;
      run.model.rope.interleaved = true;
      run.model.num_nextn_predict_layers = 1;
      run.train.mtp_loss_coef = 0.3;
      run.data.document_mask = true;
      run.data.begin_token = 4;
    }
    run.router = config::default_of(config::schema_of(given.type, router::router_schemas()), run.model);
    run.router.balance_coef = 0.1;
    run.router.balance_scope = given.scope;
    run.router.jitter = 0.1;  // its noise belongs to places in the global batch
    run.data.train = {{(dir_ / "a.bin").string(), "a", std::nullopt},
                      {(dir_ / "b.bin").string(), "b", std::nullopt}};
    run.train.seq_len = 8;
    run.train.micro_batch_size = given.micro_batch;
    run.train.global_batch_size = 4;
    run.train.lr = 0.01;
    run.train.eps = 1e-3;  // AdamW must not make much of a gradient that is all rounding
    return config::parse_run(config::to_resolved_json(run), "test", {}, router::router_schemas());
  }
  test::TempDir dir_;
};

void expect_near(double actual, double expected, const char* what) {
  EXPECT_NEAR(actual, expected, 2e-5 * std::abs(expected) + 1e-12) << what;
}

TEST_P(Ranks, TwoTrainAsOneDoes) {
  const config::Run run = this->run();
  Trained one, two[2];
  test::on_world_threads(1, [&](parallel::World& world) { one = train(run, world); });
  test::on_world_threads(2, [&](parallel::World& world) { two[world.rank()] = train(run, world); });
  ASSERT_EQ(one.steps.size(), static_cast<std::size_t>(kSteps));
  ASSERT_EQ(two[0].steps.size(), one.steps.size());
  // Both ranks learned the same from the same, to the bit.
  EXPECT_EQ(two[0].weights, two[1].weights);
  for (std::size_t s = 0; s < one.steps.size(); ++s) {
    const StepResult &a = two[0].steps[s], &b = two[1].steps[s], &whole = one.steps[s];
    for (const auto field : {&StepResult::loss, &StepResult::mtp_loss, &StepResult::grad_norm,
                             &StepResult::balance_loss, &StepResult::z_loss, &StepResult::router_loss}) {
      EXPECT_EQ(a.*field, b.*field);
      // Sums of some hundred float32 terms in another order, of weights that differ as is said below.
      expect_near(a.*field, whole.*field, ("step " + std::to_string(s)).c_str());
    }
    EXPECT_EQ(a.tokens.tokens, whole.tokens.tokens);
    EXPECT_EQ(a.tokens.keys, whole.tokens.keys);
    for (std::int64_t l = 0; l < whole.load.n_layers(); ++l) {
      EXPECT_EQ(a.load.by_domain(l), b.load.by_domain(l));
      EXPECT_EQ(a.load.slots(l), whole.load.slots(l));
      // The same weights, sequences, noise and domains: the same choices.
      if (s == 0) {
        EXPECT_EQ(a.load.by_domain(l), whole.load.by_domain(l));
      }
    }
  }
  // Rounding of 1e-7 in a gradient moves a weight by lr * 1e-4 = 1e-6 a step at most; a gradient that is of one
  // rank alone moves it by lr, 1e-2.
  EXPECT_TRUE(test::all_near(two[0].weights, one.weights, 1e-4, 2e-5));
}

INSTANTIATE_TEST_SUITE_P(
    Routers, Ranks,
    ::testing::Values(Case{"GlobalScopeOneMicroBatch", "softmax_topk", config::BalanceScope::global_batch, 2},
                      Case{"GlobalScopeTwoMicroBatches", "softmax_topk", config::BalanceScope::global_batch},
                      Case{"SequenceScope", "softmax_topk", config::BalanceScope::sequence},
                      Case{"MtpAndDocuments", "sigmoid_group", config::BalanceScope::sequence, 1, true},
                      Case{"Quantile", "quantile", config::BalanceScope::global_batch},
                      Case{"Lpr", "lpr", config::BalanceScope::global_batch},
                      Case{"TopP", "top_p", config::BalanceScope::global_batch}),
    [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace switchyard::train
