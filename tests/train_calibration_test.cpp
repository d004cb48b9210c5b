#include "train/calibration.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "parallel/world.h"
#include "router/router.h"
#include "run_samples.h"
#include "shards.h"
#include "threads.h"

namespace switchyard::train {
namespace {

using namespace test;

// A model whose tokens go to different experts, over 161 and 41 tokens.
struct Calibrating {
  Calibrating() : model_config(small_run().model) {
    model_config.num_hidden_layers = 2;
    config::set_layers(model_config, {true, true});
    model_config.initializer_range = 0.3;
    std::vector<std::uint32_t> tokens;
    for (std::uint32_t i = 0; i < 161; ++i) tokens.push_back(i * i % 31);
    write_shard(dir / "a.bin", tokens);
    tokens.resize(41);
    write_shard(dir / "b.bin", tokens);
    domains = open_domains(
        {{(dir / "a.bin").string(), "a", std::nullopt}, {(dir / "b.bin").string(), "b", std::nullopt}}, 31,
        parallel::lone_mesh().all);
  }
  config::Router router(const char* type) const {
    return config::default_of(config::schema_of(type, router::router_schemas()), model_config);
  }
  model::Transformer make(const config::Router& router) const {
    model::Transformer model(model_config, router, DType::f32, false);
    model.allocate();
    model.parameters().initialise(7);
    return model;
  }
  TempDir dir;
  config::Model model_config;
  std::vector<Domain> domains;
};

// By name, the bytes of each row.
std::vector<std::string> values_of(const ParameterStore& store) {
  std::vector<std::string> values;
  for (std::size_t row = 0; row < store.rows().size(); ++row) values.push_back(bytes_of(store.value(row)));
  return values;
}

TEST(Calibrate, MovesWhatIsNotTrainedAndNothingElse) {
  const Calibrating setup;
  const CalibrationSettings settings{.seq_len = 8, .batch = 2, .tokens = 64, .begin_token = {}};
  std::set<std::string> moved;
  for (const config::RouterSchema& schema : router::router_schemas()) {
    model::Transformer model = setup.make(calibrating(setup.router(std::string(schema.type).c_str()), 4));
    const std::vector<std::string> before = values_of(model.parameters());
    Context ctx;
    with_threads(1, [&] { calibrate(model, setup.domains, settings, ctx); });
    const std::vector<std::string> after = values_of(model.parameters());
    for (std::size_t row = 0; row < before.size(); ++row) {
      const Parameter& parameter = model.parameters().rows()[row];
      EXPECT_EQ(before[row] == after[row], parameter.trained) << schema.type << ": " << parameter.name;
      if (before[row] != after[row]) moved.insert(std::string(schema.type));
    }
  }
  EXPECT_EQ(moved,
            (std::set<std::string>{"sigmoid_group", "quantile", "dynamic_k", "expert_threshold", "kmeans"}));
}

TEST(Calibrate, IsForgottenByTheNextPlan) {
  const Calibrating setup;
  model::Transformer model = setup.make(setup.router("quantile"));
  Context ctx;
  calibrate(model, setup.domains, {.seq_len = 8, .batch = 2, .tokens = 16, .begin_token = {}}, ctx);
  model.plan(2, 8, ctx);
  EXPECT_FALSE(model.routing().global_sums().defined());
  EXPECT_FALSE(model.routing().layer(0).router().statistics().defined());
}

// 20 windows of 8 tokens in one domain, 5 in the other.
TEST(Calibrate, ReadsWholeStepsAndAtMostWhatIsThere) {
  const Calibrating setup;
  const auto steps = [&](std::int64_t batch, std::int64_t tokens) {
    return calibration_steps(setup.domains,
                             {.seq_len = 8, .batch = batch, .tokens = tokens, .begin_token = {}});
  };
  EXPECT_EQ(steps(2, 1), 1);
  EXPECT_EQ(steps(2, 16), 1);
  EXPECT_EQ(steps(2, 17), 2);
  EXPECT_EQ(steps(2, 100'000), 13);  // 25 windows, the last step of one
  model::Transformer model = setup.make(setup.router("quantile"));
  Context ctx;
  EXPECT_EQ(calibrate(model, setup.domains, {.seq_len = 8, .batch = 2, .tokens = 17, .begin_token = {}}, ctx),
            32);
  EXPECT_EQ(
      calibrate(model, setup.domains, {.seq_len = 8, .batch = 2, .tokens = 100'000, .begin_token = {}}, ctx),
      200);
  EXPECT_CONTAINS(message_of<InputError>([&] {
                    calibration_steps(setup.domains,
                                      {.seq_len = 200, .batch = 1, .tokens = 1, .begin_token = {}});
                  }),
                  "no whole window of 200 tokens");
}

TEST(Calibrate, RunningMeansForgetWhereTheyBegan) {
  const Calibrating setup;
  config::Router router = setup.router("expert_threshold");
  router.jitter = 0.5;
  const auto decay = [&](std::int64_t steps) {
    return calibrating(router, steps).own.number("threshold_decay");
  };
  EXPECT_EQ(decay(1), 0);
  EXPECT_EQ(decay(4), 0);
  EXPECT_EQ(decay(8), 0.5);
  EXPECT_EQ(decay(1'000), 0.99);  // the router's own
  EXPECT_EQ(calibrating(router, 8).jitter, 0);
  EXPECT_EQ(calibrating(setup.router("quantile"), 8).own.number("bias_ema"), 0);  // less than 0.5
}

}  // namespace
}  // namespace switchyard::train
