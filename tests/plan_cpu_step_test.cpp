// What a predicted step is made of.
#include "plan/cpu_step.h"

#include <gtest/gtest.h>

#include <string>

#include "config/load.h"
#include "router/router.h"

namespace switchyard::plan {
namespace {

config::Run run_of(const std::string& model, const std::string& train) {
  return config::parse_run(
      R"({"model": {"model_type": "qwen3_moe", "vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 3,
          "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "moe_intermediate_size": 32, "num_experts": 8,
          "num_experts_per_tok": 2, "intermediate_size": 96, "max_position_embeddings": 256)" +
          model + R"(}, "data": {"train": ["none.bin"]}, "train": {"steps": 1, "seq_len": 64, )" + train + "}}",
      "test", {}, router::router_schemas());
}

// A clock that every look at it moves on, so that what is predicted is what was looked at, however busy the
// machine is: a piece's pass takes two looks, an operator in it two more.
double looks() {
  static double count = 0;
  return count += 1;
}

constexpr CpuStepSettings kCounted{.seconds = 1, .most_tokens = 256, .now = looks};

TEST(CpuStep, AMixtureHasAllParts) {
  const CpuStep step = predict_cpu_step(run_of("", R"("micro_batch_size": 2)"), kCounted);
  double sum = 0;
  for (const auto& [name, seconds] : step.parts()) {
    EXPECT_GT(seconds, 0) << name;
    sum += seconds;
  }
  EXPECT_DOUBLE_EQ(sum, step.total());
}

TEST(CpuStep, ADenseModelHasNeitherExpertsNorRouter) {
  const CpuStep step =
      predict_cpu_step(run_of(R"(, "mlp_only_layers": [0, 1, 2])", R"("micro_batch_size": 2)"), kCounted);
  EXPECT_EQ(step.experts, 0);
  EXPECT_EQ(step.router, 0);
  EXPECT_GT(step.products, 0);
}

// The update is made once a step, all else once a micro-batch.
TEST(CpuStep, MicroBatchesAreCounted) {
  const std::string without_counts = R"("micro_batch_size": 2, "global_batch_size": )";
  const auto passes = [&](int batch) {
    config::Run run = run_of("", without_counts + std::to_string(batch));
    run.router.balance_coef = 0;
    const CpuStep step = predict_cpu_step(run, kCounted);
    return step.total() - step.optimizer;
  };
  EXPECT_DOUBLE_EQ(passes(16), 8 * passes(2));
}

}  // namespace
}  // namespace switchyard::plan
