// Whole runs of a tiny model on generated shards.
#include "config/layouts.h"
#include "core/rng.h"
#include "train/run.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <sstream>
#include <string>
#include <vector>

#include "checkpoint/tokenizer_record.h"
#include "config/load.h"
#include "config/router_section.h"
#include "json_values.h"
#include "router/router.h"
#include "run_samples.h"
#include "shards.h"
#include "tensors.h"
#include "threads.h"

namespace switchyard::train {
namespace {

using checkpoint::Checkpoint;
using checkpoint::checkpoint_path;
using checkpoint::read_run_state;
using checkpoint::RunState;
using checkpoint::special_tokens_of_model;
using namespace test;

using config::BalanceScope;
constexpr std::int64_t kSeqLen = 8, kGlobalBatch = 4;

class Training : public ::testing::Test {
 protected:
  Training() {
    // A walk over the vocabulary that a bigram model learns: most often the next token is 3 n + 1 modulo 31.
    std::vector<std::uint32_t> tokens = {1};
    const Rng rng(9, RngPurpose::shuffle, 0);
    for (std::uint64_t i = 0; i < 999; ++i)
      tokens.push_back(rng.uniform(i) < 0.9 ? (3 * tokens.back() + 1) % 31
                                            : static_cast<std::uint32_t>(rng.bits(i) % 31));
    test::write_shard(dir_ / "train.bin", tokens);
    tokens.resize(50);
    test::write_shard(dir_ / "val.bin", tokens);
  }

  config::Run run_config() const {
    config::Run run = small_run();
    run.model.num_hidden_layers = 2;
    config::set_layers(run.model, {true, true});
    run.model.initializer_range = 0.1;
    run.router = {.balance_coef = 0.1, .balance_scope = BalanceScope::global_batch, .z_loss_coef = 0.01};
    run.data.train = {{(dir_ / "train.bin").string(), "default", std::nullopt}};
    run.data.validation = {{(dir_ / "val.bin").string(), "default", std::nullopt}};
    run.train.steps = 5;
    run.train.seq_len = kSeqLen;
    run.train.micro_batch_size = 2;
    run.train.global_batch_size = kGlobalBatch;
    run.train.lr = 0.01;
    run.train.warmup_ratio = 0;
    run.train.schedule = config::Schedule::constant;
    run.checkpoint.keep = 0;
    run.log.every = 1000;
    return run;
  }

  // The same with latent attention, groups of experts and a bias that balances them. The speed is a power of
  // two, so that a few steps of it are exact.
  config::Run deepseek_run() const {
    config::Run run = run_config();
    run.model.layout = &config::kDeepseekV3;
    run.model.qk_norm = config::QkNorm::none;
    run.model.num_key_value_heads = run.model.num_attention_heads;
    run.model.mla = {
        .q_lora_rank = 4, .kv_lora_rank = 4, .qk_nope_head_dim = 2, .qk_rope_head_dim = 2, .v_head_dim = 3};
    config::set_layers(run.model, {true, true});  // latent attention
    run.model.head_dim = 4;
    run.model.n_shared_experts = 1;
    run.model.n_group = 2;
    run.model.topk_group = 1;
    run.model.rope.interleaved = true;
    run.router = {.type = "sigmoid_group",
                  .balance_coef = 0.01,
                  .balance_scope = BalanceScope::sequence,
                  .own = {{"score_function", std::string("sigmoid")},
                          {"bias", std::string("sign")},
                          {"bias_update_speed", 0.125},
                          {"bias_mean_free", false}}};
    return run;
  }

  // Trains in dir_/name. `stop`: after one step, as by a signal.
  RunEnd train(const std::string& name, const config::Run& run, const Resume& resume = {},
               bool stop = false) const {
    return train_as_it_is(name, as_from_a_file(run), resume, stop);
  }
  static config::Run as_from_a_file(const config::Run& run) {
    return config::parse_run(config::to_resolved_json(run), "test", {}, router::router_schemas());
  }
  RunEnd train_as_it_is(const std::string& name, const config::Run& run, const Resume& resume,
                        bool stop) const {
    parallel::World world = parallel::make_lone_world();
    const volatile std::sig_atomic_t stop_requested = stop ? 1 : 0;
    return test::with_threads(threads_,
                              [&] { return TrainingRun(run, dir_ / name, resume, world).run(stop_requested); });
  }
  // One JSON object a step, without what depends on the clock.
  std::vector<Json> metrics(const std::string& name) const {
    std::vector<Json> lines;
    std::istringstream text(slurp(dir_ / name / "metrics.jsonl"));
    for (std::string line; std::getline(text, line);) {
      lines.push_back(parsed(line));
      for (const char* key : kOfTheClock) EXPECT_EQ(erase(lines.back(), key), 1u) << key;
    }
    return lines;
  }
  std::filesystem::path checkpoint(const std::string& name, std::int64_t step) const {
    return checkpoint_path(dir_ / name, step);
  }
  void expect_same_checkpoint(const std::string& a, const std::string& b, std::int64_t step) const {
    for (const char* file : {"model.safetensors", "state.safetensors"}) {
      const std::string bytes = slurp(checkpoint(a, step) / file);
      EXPECT_FALSE(bytes.empty());
      EXPECT_TRUE(bytes == slurp(checkpoint(b, step) / file)) << file << " of " << a << " and " << b;
    }
  }
  // All weights of a checkpoint, one after another.
  std::vector<double> weights(const std::string& name, std::int64_t step) const {
    const config::Run run = run_config();
    model::Transformer model(run.model, run.router, DType::f32, false);
    model.allocate();
    Checkpoint(checkpoint(name, step)).load_weights(model.parameters());
    return test::values(model.parameters().values());
  }

  // The biases that choose, of all layers one after another.
  std::vector<double> choice_biases(const std::string& name, std::int64_t step) const {
    const config::Run run = as_from_a_file(deepseek_run());
    model::Transformer model(run.model, run.router, DType::f32, false);
    model.allocate();
    Checkpoint(checkpoint(name, step)).load_weights(model.parameters());
    std::vector<double> all;
    for (std::size_t i = 0; i < model.parameters().rows().size(); ++i) {
      if (model.parameters().rows()[i].trained) continue;
      const std::vector<double> bias = test::values(model.parameters().value(i));
      all.insert(all.end(), bias.begin(), bias.end());
    }
    return all;
  }

  TempDir dir_;
  int threads_ = 1;  // a team is not worth its start for a model as small as this
};

TEST_F(Training, TheLossFallsAndEveryStepIsRecorded) {
  config::Run run = run_config();
  run.train.steps = 60;
  EXPECT_EQ(train("run", run), RunEnd::finished);
  const auto lines = metrics("run");
  ASSERT_EQ(lines.size(), 60u);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    EXPECT_EQ(lines[i]["step"], i + 1);
    EXPECT_EQ(lines[i]["tokens"], (i + 1) * kGlobalBatch * kSeqLen);
    EXPECT_EQ(lines[i]["lr"], 0.01);
    EXPECT_GT(lines[i]["grad_norm"].number(), 0.0);
    EXPECT_GT(lines[i]["z_loss"].number(), 0.0);
  }
  // log 31 = 3.43 at first; guessing by the frequency of single tokens stays near it.
  EXPECT_NEAR(lines.front()["loss"].number(), 3.43, 0.2);
  EXPECT_LT(lines.back()["loss"].number(), 2.8);
  EXPECT_LT(lines.back()["val_loss"].number(), 2.8);
  EXPECT_EQ(lines.back()["val_tokens"], 49);
  EXPECT_FALSE(lines.front().contains("val_loss"));
}

TEST_F(Training, ACheckpointSaysWhereTheRunStands) {
  train("run", run_config());
  const RunState state = Checkpoint(checkpoint("run", 5)).state();
  EXPECT_EQ(state.step, 5);
  EXPECT_EQ(state.tokens, 5 * kGlobalBatch * kSeqLen);
  EXPECT_EQ(state.samples, 5u * kGlobalBatch);
  EXPECT_EQ(state.seed, 5u);
}

// With a learning rate of nothing the model stays what it is; the mean of its losses over an epoch is then what
// the evaluator finds over the same tokens, in whatever order the samples came.
TEST_F(Training, AnEpochSeesEveryWindowOnce) {
  config::Run run = run_config();
  constexpr std::int64_t kWindows = 999 / kSeqLen;  // 124
  run.train.lr = 1e-30;
  run.train.steps = kWindows / kGlobalBatch;
  run.data.validation = run.data.train;
  run.train.eval_tokens = kWindows * kSeqLen;
  train("run", run);
  const auto lines = metrics("run");
  double sum = 0;
  for (const Json& line : lines) sum += line["loss"].number();
  EXPECT_NEAR(sum / static_cast<double>(lines.size()), lines.back()["val_loss"].number(),
              1e-5);  // float32
  EXPECT_NE(lines[0]["loss"], lines[1]["loss"]);
}

TEST_F(Training, CountsSumToTokensTimesSlotsWithAndWithoutThePrePass) {
  for (const std::int64_t micro_batch : {1, 2, 4})
    for (const BalanceScope scope : {BalanceScope::global_batch, BalanceScope::layer}) {
      config::Run run = run_config();
      run.train.steps = 2;
      run.train.micro_batch_size = micro_batch;
      run.router.balance_scope = scope;
      const std::string name = "run" + std::to_string(micro_batch) + std::to_string(static_cast<int>(scope));
      train(name, run);
      for (const Json& line : metrics(name)) {
        ASSERT_EQ(line["layers"].size(), 2u);
        for (std::size_t l = 0; l < 2; ++l) {
          EXPECT_EQ(line["layers"][l]["layer"], l);
          std::int64_t slots = 0;
          for (const Json& count : line["layers"][l]["counts"].array()) slots += count.integer();
          EXPECT_EQ(slots, kGlobalBatch * kSeqLen * run.model.num_experts_per_tok);
        }
      }
    }
}

TEST_F(Training, TheFirstStepsFiguresAreThoseOfItsCounts) {
  config::Run run = run_config();
  run.train.steps = 1;
  train("run", run);
  const Json layer = metrics("run").front()["layers"].array()[0];
  const auto figures = router::balance_figures(numbers<double>(layer["counts"]));
  // The moving average's factor of 0.01 cancels but for rounding.
  EXPECT_NEAR(layer["gini"].number(), figures.gini, 1e-12);
  EXPECT_NEAR(layer["cv"].number(), figures.cv, 1e-12);
  EXPECT_NEAR(layer["min_max"].number(), figures.min_max, 1e-12);
}

TEST_F(Training, AccumulationFourTimesOneIsOneTimesFour) {
  for (const BalanceScope scope : {BalanceScope::global_batch, BalanceScope::sequence}) {
    config::Run run = run_config();
    run.router = {.balance_coef = 0.5, .balance_scope = scope, .z_loss_coef = 0.05};
    // AdamW's step is g / (|g| + eps): with the usual eps a gradient of 1e-9, all rounding, moves a weight as
    // far as one of 1. At 1e-3 rounding of 1e-7 in a gradient moves it by lr * 1e-4 = 1e-6 at most.
    run.train.eps = 1e-3;
    for (const std::int64_t micro_batch : {1, 2, 4}) {
      run.train.micro_batch_size = micro_batch;
      train("scope" + std::to_string(static_cast<int>(scope)) + "micro" + std::to_string(micro_batch), run);
    }
    const std::string whole = "scope" + std::to_string(static_cast<int>(scope)) + "micro4";
    for (const char* cut : {"1", "2"}) {
      const std::string parts = whole.substr(0, whole.size() - 1) + cut;
      const auto expected = metrics(whole), actual = metrics(parts);
      ASSERT_EQ(actual.size(), expected.size());
      for (std::size_t i = 0; i < actual.size(); ++i)
        for (const char* key : {"loss", "grad_norm", "balance_loss", "z_loss"}) {
          const double value = expected[i][key].number();
          EXPECT_GT(value, 0.0) << key;
          EXPECT_NEAR(actual[i][key].number(), value, 2e-5 * value) << key << " of step " << i + 1;
        }
      EXPECT_TRUE(test::all_near(weights(parts, 5), weights(whole, 5), 0, 2e-5));
    }
  }
}

TEST_F(Training, EveryScopeAndNoneTrainsAndOnlyThatTermDiffers) {
  std::vector<double> balance;
  for (const BalanceScope scope :
       {BalanceScope::layer, BalanceScope::sequence, BalanceScope::global_batch, BalanceScope::model}) {
    config::Run run = run_config();
    run.train.steps = 1;
    run.router.balance_scope = scope;
    const std::string name = "scope" + std::to_string(static_cast<int>(scope));
    train(name, run);
    balance.push_back(metrics(name).front()["balance_loss"].number());
  }
  // All are near the coefficient of 0.1, `model` near K = 2 times it: the router starts near balance.
  for (const std::size_t i : {0u, 1u, 2u}) EXPECT_NEAR(balance[i], 0.1, 0.05);
  EXPECT_NEAR(balance[3], 0.2, 0.05);
  config::Run off = run_config();
  off.train.steps = 1;
  off.router = {.balance_coef = 0, .z_loss_coef = 0};
  train("off", off);
  EXPECT_EQ(metrics("off").front()["balance_loss"], 0.0);
  EXPECT_EQ(metrics("off").front()["z_loss"], 0.0);
}

TEST_F(Training, TheSameSeedGivesTheSameBits) {
  threads_ = 3;
  train("a", run_config());
  train("b", run_config());
  EXPECT_EQ(metrics("a"), metrics("b"));
  expect_same_checkpoint("a", "b", 5);
  config::Run other = run_config();
  other.train.seed = 6;
  train("c", other);
  EXPECT_NE(metrics("a"), metrics("c"));
}

TEST_F(Training, StoppedAndResumedTwiceIsAsIfNeverStopped) {
  config::Run run = run_config();
  run.train.schedule = config::Schedule::cosine;
  run.train.eval_every = 2;
  EXPECT_EQ(train("whole", run), RunEnd::finished);

  EXPECT_EQ(train("stopped", run, {}, true), RunEnd::interrupted);
  EXPECT_EQ(metrics("stopped").size(), 1u);
  EXPECT_EQ(train("stopped", run, {.wanted = true, .checkpoint = checkpoint("stopped", 1)}, true),
            RunEnd::interrupted);
  EXPECT_EQ(train("stopped", run, {.wanted = true, .checkpoint = checkpoint("stopped", 2)}), RunEnd::finished);
  EXPECT_EQ(metrics("stopped"), metrics("whole"));
  expect_same_checkpoint("stopped", "whole", 5);
}

// As after SIGKILL: the metrics are ahead of the checkpoint.
TEST_F(Training, ResumedFromAnOlderCheckpointRepeatsTheSteps) {
  config::Run run = run_config();
  run.checkpoint.every = 2;
  train("run", run);
  const auto expected = metrics("run");
  const std::string weights = slurp(checkpoint("run", 5) / "model.safetensors");
  const std::string state = slurp(checkpoint("run", 5) / "state.safetensors");
  std::filesystem::remove_all(checkpoint("run", 5));
  train("run", run, {.wanted = true, .named = true, .checkpoint = checkpoint("run", 2)});
  EXPECT_EQ(metrics("run"), expected);
  EXPECT_TRUE(slurp(checkpoint("run", 5) / "model.safetensors") == weights);
  EXPECT_TRUE(slurp(checkpoint("run", 5) / "state.safetensors") == state);
}

// The same tokens in every window, and a rate that moves no weight: only noise can tell steps apart.
TEST_F(Training, NoiseIsAnotherInEveryStep) {
  test::write_shard(dir_ / "constant.bin", std::vector<std::uint32_t>(1000, 7));
  config::Run run = run_config();
  run.data.train[0].path = (dir_ / "constant.bin").string();
  run.train.lr = 1e-30;
  run.train.steps = 3;
  train("without", run);
  run.router.jitter = 2;
  train("with", run);
  const auto without = metrics("without"), with = metrics("with");
  for (std::size_t step = 1; step < 3; ++step) {
    EXPECT_EQ(without[step]["loss"], without[0]["loss"]);
    EXPECT_NE(with[step]["loss"], with[step - 1]["loss"]);
  }
}

TEST_F(Training, TheRoutersOwnLossIsReported) {
  config::Run run = run_config();
  run.train.steps = 1;
  run.router = config::default_of(config::schema_of("top_p", router::router_schemas()), run.model);
  const auto loss = [&](const std::string& name, double coef) {
    run.router.own.set("entropy_coef", coef);
    train(name, run);
    return metrics(name)[0]["router_loss"].number();
  };
  const double once = loss("once", 0.25);
  EXPECT_EQ(loss("twice", 0.5), 2 * once);
  // Two layers of four experts, hardly any choice yet: all but the largest entropy there is.
  EXPECT_LE(once, 0.25 * 2 * std::log(4));
  EXPECT_GT(once, 0.9 * 0.25 * 2 * std::log(4));
}

// Once a step and by the counts of all its micro-batches, which the metrics have.
TEST_F(Training, AStepMovesTheBiasByItsSpeedTowardsBalance) {
  for (const std::int64_t micro_batch : {1, 2, 4}) {
    config::Run run = deepseek_run();
    run.train.micro_batch_size = micro_batch;
    const std::string name = "micro" + std::to_string(micro_batch);
    train(name, run);
    std::vector<double> expected(2 * 4, 0.0);
    bool moved = false;
    for (const Json& line : metrics(name)) {
      for (std::size_t l = 0; l < 2; ++l) {
        const auto count_E = numbers<double>(line["layers"][l]["counts"]);
        for (std::size_t e = 0; e < 4; ++e) {
          const double mean = kGlobalBatch * kSeqLen * 2 / 4.0;
          expected[l * 4 + e] += count_E[e] < mean ? 0.125 : count_E[e] > mean ? -0.125 : 0;
          moved = moved || count_E[e] != mean;
        }
      }
    }
    EXPECT_TRUE(moved);
    EXPECT_EQ(choice_biases(name, 5), expected) << micro_batch << " sequences a micro-batch";
  }
}

TEST_F(Training, WithoutASpeedTheBiasStaysWhatItIs) {
  config::Run run = deepseek_run();
  run.router.own.set("bias_update_speed", 0.0);
  train("run", run);
  EXPECT_EQ(choice_biases("run", 5), std::vector<double>(8, 0.0));
}

TEST_F(Training, DeepseekV3StoppedAndResumedIsAsIfNeverStopped) {
  const config::Run run = deepseek_run();
  EXPECT_EQ(train("whole", run), RunEnd::finished);
  EXPECT_EQ(train("stopped", run, {}, true), RunEnd::interrupted);
  EXPECT_EQ(train("stopped", run, {.wanted = true, .checkpoint = checkpoint("stopped", 1)}), RunEnd::finished);
  EXPECT_EQ(metrics("stopped"), metrics("whole"));
  expect_same_checkpoint("stopped", "whole", 5);
}

TEST_F(Training, DeepseekV3LearnsWithAndWithoutADenseLayer) {
  config::Run run = deepseek_run();
  run.train.steps = 60;
  for (const bool dense : {false, true}) {
    if (dense) {
      config::set_layers(run.model, {false, true});
      run.model.intermediate_size = 16;
    }
    const std::string name = dense ? "dense" : "moe";
    train(name, run);
    const auto lines = metrics(name);
    EXPECT_NEAR(lines.front()["loss"].number(), 3.43, 0.2);  // log 31
    EXPECT_LT(lines.back()["loss"].number(), 2.8);
    EXPECT_EQ(lines.back()["layers"].size(), dense ? 1u : 2u);
    EXPECT_EQ(lines.back()["z_loss"], 0.0);
  }
}

// deepseek_run with two depths of multi-token prediction.
config::Run with_mtp(config::Run run) {
  run.model.num_nextn_predict_layers = 2;
  run.train.mtp_loss_coef = 0.3;
  return run;
}

TEST_F(Training, MultiTokenPredictionLearns) {
  config::Run run = with_mtp(deepseek_run());
  run.train.steps = 60;
  train("mtp", run);
  const auto lines = metrics("mtp");
  EXPECT_NEAR(lines.front()["mtp_loss"].number(), 3.43, 0.2);  // log 31
  EXPECT_LT(lines.back()["mtp_loss"].number(), 3.1);           // two and three tokens ahead are less certain
  EXPECT_LT(lines.back()["loss"].number(), 2.8);
  ASSERT_EQ(lines.back()["layers"].size(), 4u);
  const Json& layers = lines.back()["layers"];
  EXPECT_EQ(layers[3]["layer"], 3);
  // Two slots a token; of a window of 8, all but the last two at the second depth.
  double slots = 0;
  for (const double count : numbers<double>(layers[3]["counts"])) slots += count;
  EXPECT_EQ(slots, 2 * kGlobalBatch * (kSeqLen - 2));
  // The headline is of the main layers.
  EXPECT_NEAR(lines.back()["gini"].number(), (layers[0]["gini"].number() + layers[1]["gini"].number()) / 2,
              1e-12);
}

TEST_F(Training, MultiTokenPredictionFourTimesOneIsOneTimesFour) {
  for (const bool document_mask : {false, true}) {
    config::Run run = with_mtp(deepseek_run());
    run.train.eps = 1e-3;  // as in AccumulationFourTimesOneIsOneTimesFour
    run.data.document_mask = document_mask;
    if (document_mask) run.data.eot_token = 4;
    const std::string name = document_mask ? "documents" : "open";
    for (const std::int64_t micro_batch : {1, 4}) {
      run.train.micro_batch_size = micro_batch;
      train(name + std::to_string(micro_batch), run);
    }
    const auto expected = metrics(name + "4"), actual = metrics(name + "1");
    ASSERT_EQ(actual.size(), expected.size());
    for (std::size_t i = 0; i < actual.size(); ++i)
      for (const char* key : {"loss", "mtp_loss", "grad_norm", "balance_loss"}) {
        const double value = expected[i][key].number();
        EXPECT_GT(value, 0.0) << key;
        EXPECT_NEAR(actual[i][key].number(), value, 2e-5 * value) << key << " of step " << i + 1;
      }
  }
}

TEST_F(Training, MultiTokenPredictionStoppedAndResumedIsAsIfNeverStopped) {
  config::Run run = with_mtp(deepseek_run());
  run.train.eval_every = 2;
  EXPECT_EQ(train("whole", run), RunEnd::finished);
  EXPECT_EQ(train("stopped", run, {}, true), RunEnd::interrupted);
  EXPECT_EQ(train("stopped", run, {.wanted = true, .checkpoint = checkpoint("stopped", 1)}), RunEnd::finished);
  EXPECT_EQ(metrics("stopped"), metrics("whole"));
  expect_same_checkpoint("stopped", "whole", 5);
}

TEST_F(Training, LayersWithoutTheirLossAreNotMade) {
  config::Run run = with_mtp(deepseek_run());
  run.train.mtp_loss_coef = 0;
  train("off", run);
  train("none", deepseek_run());
  expect_same_checkpoint("off", "none", 5);
  EXPECT_EQ(Checkpoint(checkpoint("off", 5)).model().num_nextn_predict_layers, 0);
}

TEST_F(Training, EvaluationInBetweenChangesNoBit) {
  config::Run often = run_config(), never = run_config();
  often.train.eval_every = 1;
  never.data.validation.clear();
  train("often", often);
  train("never", never);
  auto lines = metrics("often");
  for (Json& line : lines)
    for (const char* key : {"val_loss", "val_tokens", "val_balance", "val_loss_by_domain", "val_layers"})
      EXPECT_EQ(erase(line, key), 1u) << key;
  EXPECT_EQ(lines, metrics("never"));
  expect_same_checkpoint("often", "never", 5);
}

TEST_F(Training, ADenseModelTrainsWithoutRouterFigures) {
  config::Run run = run_config();
  config::set_layers(run.model, {false, false});
  run.model.intermediate_size = 16;
  train("run", run);
  const auto lines = metrics("run");
  ASSERT_EQ(lines.size(), 5u);
  EXPECT_EQ(lines.back()["layers"], Json(Json::Array{}));
  EXPECT_LT(lines.back()["loss"].number(), lines.front()["loss"].number());
}

TEST_F(Training, TheSlidingWindowAndTheDocumentMaskReachTheModel) {
  config::Run run = run_config();
  run.train.steps = 1;
  train("open", run);
  run.model.sliding_window = 2;
  train("window", run);
  run.model.sliding_window = 0;
  run.data.document_mask = true;
  run.data.eot_token = 4;
  train("documents", run);
  const double open = metrics("open").front()["loss"].number();
  EXPECT_NE(metrics("window").front()["loss"], open);
  EXPECT_NE(metrics("documents").front()["loss"], open);
}

TEST_F(Training, ALossThatIsNotFiniteStopsTheRunAndKeepsTheLastCheckpoint) {
  config::Run run = as_from_a_file(run_config());
  run.train.lr = 1e30;  // more than a file may say; the second forward pass overflows
  run.checkpoint.every = 1;
  const std::string message = message_of<RunError>([&] { train_as_it_is("run", run, {}, false); });
  EXPECT_CONTAINS(message, "step 2: the loss is not finite");
  EXPECT_CONTAINS(message, "the first such tensor:");
  EXPECT_CONTAINS(message, checkpoint("run", 1).string());
  EXPECT_EQ(Checkpoint(dir_ / "run").state().step, 1);
  EXPECT_EQ(metrics("run").size(), 1u);
}

// A walk that a model learns to the last bit, and three windows of a token that never follows itself: their
// loss is far above that of the others once the walk is learned.
class Spikes : public Training {
 protected:
  Spikes() {
    std::vector<std::uint32_t> tokens = {1};
    while (tokens.size() < 100 * kSeqLen) tokens.push_back((3 * tokens.back() + 1) % 31);
    tokens.insert(tokens.end(), 3 * kSeqLen + 1, 30);
    test::write_shard(dir_ / "spikes.bin", tokens);
  }
  config::Run spiky_run() const {
    config::Run run = run_config();
    run.data.train = {{(dir_ / "spikes.bin").string(), "default", std::nullopt}};
    run.data.validation = {};
    run.train.steps = 200;
    run.train.micro_batch_size = run.train.global_batch_size = 1;
    run.train.spike.window = 40;
    run.checkpoint.every = 10;
    return run;
  }
  std::string weights_of(const std::string& name, std::int64_t step) const {
    return slurp(checkpoint(name, step) / "model.safetensors");
  }
  // The steps at which the count of steps left out rose.
  static std::vector<std::int64_t> skipped_steps(const std::vector<Json>& lines) {
    std::vector<std::int64_t> steps;
    for (std::size_t i = 1; i < lines.size(); ++i)
      if (lines[i]["skipped"].integer() > lines[i - 1]["skipped"].integer())
        steps.push_back(lines[i]["step"].integer());
    return steps;
  }
};

TEST_F(Spikes, AStepThatIsLeftOutChangesNothingAndAResumedRunLeavesOutTheSame) {
  const config::Run run = spiky_run();
  EXPECT_EQ(train("all", run), RunEnd::finished);
  const std::vector<Json> lines = metrics("all");
  ASSERT_EQ(lines.size(), 200u);
  const std::vector<std::int64_t> skipped = skipped_steps(lines);
  ASSERT_FALSE(skipped.empty());
  const std::int64_t step = skipped.front();
  ASSERT_GT(step, 40);
  // The step changed nothing: a run that ends with it has the weights of the one that ends before.
  for (const std::int64_t end : {step - 1, step}) {
    config::Run until = run;
    until.train.steps = end;
    train(std::to_string(end), until);
  }
  EXPECT_EQ(weights_of(std::to_string(step), step), weights_of(std::to_string(step - 1), step - 1));
  const RunState state = read_run_state(checkpoint("all", 200));
  EXPECT_EQ(state.updates + state.spikes.skipped, 200);
  EXPECT_EQ(state.samples, 200u);  // the data go on

  const std::int64_t before = (step - 1) / 10 * 10;
  train("resumed", run, {.wanted = true, .checkpoint = checkpoint("all", before)});
  expect_same_checkpoint("all", "resumed", 200);
  EXPECT_EQ(metrics("resumed"), std::vector<Json>(lines.begin() + before, lines.end()));

  config::Run off = run;
  off.train.spike.deviations = off.train.spike.grad_norm_factor = 0;
  train("off", off);
  EXPECT_EQ(metrics("off").back()["skipped"], 0);
  EXPECT_NE(weights_of("off", 200), weights_of("all", 200));
}

TEST_F(Spikes, TooManyInARowSendTheRunBackWithTheDataBehindThem) {
  config::Run run = spiky_run();
  run.train.spike.patience = 1;
  EXPECT_EQ(train("run", run), RunEnd::finished);
  const std::vector<Json> lines = metrics("run");
  const RunState state = read_run_state(checkpoint("run", 200));
  EXPECT_GT(state.spikes.rollbacks, 0);
  EXPECT_EQ(state.spikes.skipped, state.spikes.rollbacks);
  EXPECT_EQ(state.updates, 200);   // every step that counts was learned from
  EXPECT_GT(state.samples, 200u);  // for others than those first drawn
  EXPECT_EQ(lines.back()["rollbacks"], state.spikes.rollbacks);
  for (std::size_t i = 0; i < lines.size(); ++i) EXPECT_EQ(lines[i]["step"], i + 1);  // each step once
}

TEST_F(Spikes, WithoutACheckpointToGoBackToTheRunEnds) {
  config::Run run = spiky_run();
  run.train.spike.patience = 1;
  run.checkpoint.every = 0;
  const std::string message = message_of<RunError>([&] { train("run", run); });
  EXPECT_CONTAINS(message, "1 steps in a row were left out (train.spike), of the last one the loss ");
  EXPECT_CONTAINS(message, "there is no checkpoint to go back to");
}

TEST_F(Training, OtherDataThanTheCheckpointsAreRefusedAndNamed) {
  config::Run run = run_config();
  std::filesystem::create_directory(dir_ / "d");
  std::vector<std::uint32_t> tokens;
  for (std::uint32_t i = 0; i < 400; ++i) tokens.push_back(i * i % 31);
  test::write_shard(dir_ / "d/train_000000.bin", tokens);
  run.data.train = {{(dir_ / "d/train_*.bin").string(), "law", std::nullopt}};
  run.train.steps = 2;
  train("run", run);
  run.train.steps = 3;
  const auto refused = [&] {
    return message_of<InputError>([&] { train("run", run, {.wanted = true, .checkpoint = dir_ / "run"}); });
  };
  test::write_shard(dir_ / "d/train_000001.bin", tokens);
  EXPECT_CONTAINS(refused(), "data.train: train_000001.bin (domain law) is new");
  std::filesystem::remove(dir_ / "d/train_000001.bin");
  std::rotate(tokens.begin(), tokens.begin() + 200, tokens.end());  // the two halves, swapped
  test::write_shard(dir_ / "d/train_000000.bin", tokens);
  EXPECT_CONTAINS(refused(), "data.train: train_000000.bin (domain law) has other tokens: crc32 was ");
  std::rotate(tokens.begin(), tokens.begin() + 200, tokens.end());
  test::write_shard(dir_ / "d/train_000000.bin", tokens);
  std::filesystem::rename(dir_ / "d", dir_ / "moved");  // the same shards elsewhere
  run.data.train[0].path = (dir_ / "moved").string();
  const std::string validation = slurp(dir_ / "val.bin");
  test::write_shard(dir_ / "val.bin", std::vector<std::uint32_t>(50, 3));
  EXPECT_CONTAINS(refused(), "data.validation: val.bin (domain default) has other tokens");
  test::write_bytes(dir_ / "val.bin", validation);
  test::write_bytes(dir_ / "moved/meta.json",
                    R"({"tokenizer": "bytes", "tokenizer_sha256": null, "vocab_size": 31, "eot_token": 3})");
  EXPECT_EQ(train("run", run, {.wanted = true, .checkpoint = dir_ / "run"}), RunEnd::finished);
  run.train.steps = 4;
  test::write_bytes(dir_ / "moved/meta.json",
                    R"({"tokenizer": "bytes", "tokenizer_sha256": null, "vocab_size": 31, "eot_token": 4})");
  EXPECT_CONTAINS(refused(), "data.train: meta.json beside the shards has another eot_token: was 3, is 4");
  EXPECT_EQ(train("run", run, {.wanted = true, .checkpoint = dir_ / "run", .allow_new_data = true}),
            RunEnd::finished);
}

TEST_F(Training, AnotherRouterIsNamedWhereItsStateDoesNotFit) {
  config::Run run = run_config();
  train("run", run);
  run.train.steps = 6;
  run.router.type = "quantile";
  run.router.own = config::default_of(config::schema_of("quantile", router::router_schemas()), run.model).own;
  run.router.z_loss_coef = 0;
  const std::string message =
      message_of<InputError>([&] { train("run", run, {.wanted = true, .checkpoint = dir_ / "run"}); });
  EXPECT_CONTAINS(message, R"(router.type is "quantile", in the checkpoint "softmax_topk")");
}

TEST(SpecialTokens, OfAModelAreItsRunsOrElseItsConfigurations) {
  const TempDir dir;
  EXPECT_EQ(special_tokens_of_model(dir.path()).begin, std::nullopt);
  test::write_bytes(dir / "config.json", R"({"bos_token_id": 1, "eos_token_id": 2})");
  EXPECT_EQ(special_tokens_of_model(dir.path()).begin, 1);
  EXPECT_EQ(special_tokens_of_model(dir.path()).eot, 2);
  test::write_bytes(dir / "generation_config.json", R"({"bos_token_id": 5, "eos_token_id": [2, 7]})");
  EXPECT_EQ(special_tokens_of_model(dir.path()).begin, 5);
  test::write_bytes(dir / "tokenizer_meta.json", R"({"tokenizer": "bytes", "eot_token": 9})");
  EXPECT_EQ(special_tokens_of_model(dir.path()).begin, 9);
}

}  // namespace
}  // namespace switchyard::train
