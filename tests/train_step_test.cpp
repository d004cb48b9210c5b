// The global batch of a step on one rank and on two, which are threads here.
#include "config/layouts.h"
#include "train/step.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "config/load.h"
#include "config/names.h"
#include "config/router_section.h"
#include "core/rng.h"
#include "router/router.h"
#include "run_samples.h"
#include "shards.h"
#include "temp_dir.h"
#include "tensors.h"
#include "world_threads.h"

namespace switchyard::train {
namespace {

constexpr std::int64_t kSteps = 4;

struct Trained {
  std::vector<double> weights;                         // the flat array
  std::map<std::string, std::vector<double>> by_name;  // of what lies on this rank
  std::vector<StepResult> steps;
};

Trained train(const config::Run& run, parallel::World& world) {
  const TrainingData data(run, parallel::all_ranks(world));
  Step step(run, data, world, Device::cpu);
  step.model().parameters().initialise(run.train.seed);
  Trained trained;
  for (std::int64_t s = 0; s < kSteps; ++s) {
    trained.steps.push_back(step.compute(s, static_cast<std::uint64_t>(s * run.train.global_batch_size)));
    step.update(run.train.lr, s + 1);
  }
  const ParameterStore& parameters = step.model().parameters();
  trained.weights = test::values(parameters.values());
  for (std::size_t row = 0; row < parameters.rows().size(); ++row)
    if (parameters.is_here(row))
      trained.by_name[parameters.rows()[row].name] = test::values(parameters.value(row));
  return trained;
}

struct Case {
  std::string name;
  std::string type;
  config::BalanceScope scope;
  std::int64_t micro_batch = 1;  // of a global batch of four
  bool mtp = false;              // DeepSeek-V3 with a depth of multi-token prediction, and documents
  std::string estimator{};       // of dynamic_k
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
    if (!given.estimator.empty()) {
      run.router.own.set("estimator", given.estimator);
      run.router.own.set("max_experts", std::int64_t{3});
    }
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

std::vector<Trained> train_on(int size, const config::Run& run) {
  std::vector<Trained> of_rank(static_cast<std::size_t>(size));
  test::on_world_threads(size, [&](parallel::World& world) {
    of_rank[static_cast<std::size_t>(world.rank())] = train(run, world);
  });
  return of_rank;
}

constexpr double StepResult::*kFigures[] = {&StepResult::loss,      &StepResult::mtp_loss,
                                            &StepResult::grad_norm, &StepResult::balance_loss,
                                            &StepResult::z_loss,    &StepResult::router_loss};

// Four micro-batches on three ranks: one has two, the others run one of padding beside theirs.
TEST_P(Ranks, ManyTrainAsOneDoes) {
  const config::Run run = this->run();
  const Trained one = train_on(1, run)[0];
  ASSERT_EQ(one.steps.size(), static_cast<std::size_t>(kSteps));
  for (const int size : {2, 3, 4}) {
    if (size > run.train.global_batch_size / run.train.micro_batch_size) continue;
    SCOPED_TRACE(size);
    const std::vector<Trained> many = train_on(size, run);
    for (const Trained& other : many) {
      // All ranks learned the same from the same, to the bit.
      EXPECT_EQ(many[0].weights, other.weights);
      ASSERT_EQ(other.steps.size(), one.steps.size());
      for (std::size_t s = 0; s < one.steps.size(); ++s) {
        const StepResult &a = many[0].steps[s], &b = other.steps[s], &whole = one.steps[s];
        for (const auto field : kFigures) {
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
    }
    // Rounding of 1e-7 in a gradient moves a weight by lr * 1e-4 = 1e-6 a step at most; a gradient that is of
    // one rank alone moves it by lr, 1e-2.
    EXPECT_TRUE(test::all_near(many[0].weights, one.weights, 1e-4, 2e-5));
  }
}

void expect_same_bits(const Trained& a, const Trained& b) {
  EXPECT_EQ(a.weights, b.weights);
  ASSERT_EQ(a.steps.size(), b.steps.size());
  for (std::size_t s = 0; s < a.steps.size(); ++s) {
    SCOPED_TRACE(::testing::Message() << "step " << s);
    for (const auto field : kFigures) EXPECT_EQ(a.steps[s].*field, b.steps[s].*field);
    for (std::int64_t l = 0; l < a.steps[s].load.n_layers(); ++l)
      EXPECT_EQ(a.steps[s].load.by_domain(l), b.steps[s].load.by_domain(l));
  }
}

TEST_P(Ranks, WhereMomentsLieChangesNoBit) {
  config::Run run = this->run();
  run.train.clip_norm = 0.1;  // the norm matters
  for (const int size : {2, 3}) {
    if (size > run.train.global_batch_size / run.train.micro_batch_size) continue;
    SCOPED_TRACE(size);
    run.parallel.zero = 0;
    const std::vector<Trained> everywhere = train_on(size, run);
    run.parallel.zero = 1;
    const std::vector<Trained> sharded = train_on(size, run);
    run.parallel.zero = 2;
    const std::vector<Trained> gradients = train_on(size, run);
    for (std::size_t rank = 0; rank < sharded.size(); ++rank) {
      expect_same_bits(everywhere[rank], sharded[rank]);
      EXPECT_EQ(gradients[rank].weights, gradients[0].weights);
      if (micro_batches_of(run.train, 0, size).run == 1)
        expect_same_bits(everywhere[rank], gradients[rank]);
      else  // sums of two micro-batches and ranks in another order: as between one rank and many, above
        EXPECT_TRUE(test::all_near(gradients[rank].weights, everywhere[rank].weights, 1e-4, 2e-5));
    }
  }
}

TEST_P(Ranks, SameBitsOnAnyNumberOfRanks) {
  config::Run run = this->run();
  run.train.same_bits = true;
  run.train.clip_norm = 0.1;
  run.train.global_batch_size = 8 * run.train.micro_batch_size;
  const Trained one = train_on(1, run)[0];
  for (const int size : {2, 4, 8}) {
    SCOPED_TRACE(size);
    for (const Trained& rank : train_on(size, run)) expect_same_bits(one, rank);
  }
  // By halves is another order than one after the other, or this shows nothing.
  run.train.same_bits = false;
  EXPECT_NE(train_on(1, run)[0].weights, one.weights);
}

void expect_experts_shared(const std::vector<Trained>& ranks, const Trained& one, std::size_t holders) {
  std::map<std::string, std::size_t> seen;
  for (const Trained& rank : ranks) {
    for (std::size_t s = 0; s < one.steps.size(); ++s) {
      for (const auto field : kFigures)
        expect_near(rank.steps[s].*field, one.steps[s].*field, ("step " + std::to_string(s)).c_str());
      if (s > 0) continue;
      for (std::int64_t l = 0; l < one.steps[s].load.n_layers(); ++l)
        EXPECT_EQ(rank.steps[s].load.by_domain(l), one.steps[s].load.by_domain(l));
    }
    for (const auto& [name, values] : rank.by_name) {
      ++seen[name];
      EXPECT_TRUE(test::all_near(values, one.by_name.at(name), 1e-4, 2e-5)) << name;  // as above
    }
  }
  EXPECT_EQ(seen.size(), one.by_name.size());
  for (const auto& [name, times] : seen)
    EXPECT_EQ(times, name.find(".experts.") == std::string::npos ? ranks.size() : holders) << name;
}

TEST_P(Ranks, ThatShareExpertsTrainAsOneDoes) {
  config::Run run = this->run();
  run.train.clip_norm = 0.1;  // a norm that left experts out, or counted them twice, would show
  run.train.global_batch_size = 4 * run.train.micro_batch_size;
  const Trained one = train_on(1, run)[0];
  for (const auto& [size, expert] : {std::pair{2, 2}, {4, 2}, {4, 4}})
    for (const auto exchange : {config::TokenExchange::all, config::TokenExchange::rows}) {
      SCOPED_TRACE(::testing::Message() << size << " ranks, expert " << expert << ", " << name_of(exchange));
      run.parallel.expert = expert;
      run.parallel.token_exchange = exchange;
      run.parallel.zero = size == 2 ? 0 : expert == 2 ? 2 : 1;
      const std::vector<Trained> ranks = train_on(size, run);
      expect_experts_shared(ranks, one, static_cast<std::size_t>(size / expert));
      for (const StepResult& step : ranks[0].steps) EXPECT_EQ(step.experts.rounds, 1);
    }
}

TEST_P(Ranks, WithoutRoomForAllRowsAStepIsDoneAgainInRounds) {
  config::Run run = this->run();
  if (!GetParam().estimator.empty())
    run.router.own.set("min_experts", std::int64_t{3});  // no slot stays free, for which there is room
  run.train.global_batch_size = 4 * run.train.micro_batch_size;
  const Trained one = train_on(1, run)[0];
  run.parallel.expert = 2;
  run.parallel.expert_room = 1;
  const std::vector<Trained> ranks = train_on(2, run);
  expect_experts_shared(ranks, one, 1);
  std::int64_t redone = 0;
  for (const StepResult& step : ranks[0].steps) redone += step.experts.rounds > 1 ? 1 : 0;
  EXPECT_GT(redone, 0);  // no router is so even that each rank's rows are an even load
  const std::vector<Trained> again = train_on(2, run);
  for (std::size_t rank = 0; rank < again.size(); ++rank) EXPECT_EQ(again[rank].weights, ranks[rank].weights);
}

INSTANTIATE_TEST_SUITE_P(
    Routers, Ranks,
    ::testing::Values(
        Case{"GlobalScopeOneMicroBatch", "softmax_topk", config::BalanceScope::global_batch, 2},
        Case{"GlobalScopeTwoMicroBatches", "softmax_topk", config::BalanceScope::global_batch},
        Case{"SequenceScope", "softmax_topk", config::BalanceScope::sequence},
        Case{"MtpAndDocuments", "sigmoid_group", config::BalanceScope::sequence, 1, true},
        Case{"Quantile", "quantile", config::BalanceScope::global_batch},
        Case{"Lpr", "lpr", config::BalanceScope::global_batch},
        Case{"TopP", "top_p", config::BalanceScope::global_batch},
        Case{"LossGradient", "dynamic_k", config::BalanceScope::global_batch, 1, false, "loss_gradient"},
        Case{"LossGradientOfMtp", "dynamic_k", config::BalanceScope::layer, 1, true, "loss_gradient"}),
    [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace switchyard::train
