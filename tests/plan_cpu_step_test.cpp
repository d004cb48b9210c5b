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

// Short: what is asked for is there, however long it took.
constexpr CpuStepSettings kQuick{.seconds = 0.01, .most_tokens = 256};

TEST(CpuStep, AMixtureHasAllParts) {
  const CpuStep step = predict_cpu_step(run_of("", R"("micro_batch_size": 2)"), kQuick);
  double sum = 0;
  for (const auto& [name, seconds] : step.parts()) {
    EXPECT_GT(seconds, 0) << name;
    sum += seconds;
  }
  EXPECT_DOUBLE_EQ(sum, step.total());
}

TEST(CpuStep, ADenseModelHasNeitherExpertsNorRouter) {
  const CpuStep step =
      predict_cpu_step(run_of(R"(, "mlp_only_layers": [0, 1, 2])", R"("micro_batch_size": 2)"), kQuick);
  EXPECT_EQ(step.experts, 0);
  EXPECT_EQ(step.router, 0);
  EXPECT_GT(step.products, 0);
}

// The update is made once a step. Eight micro-batches take eight times as long as one, within a factor of 2.5,
// which other programs on the machine may cost.
TEST(CpuStep, MicroBatchesAreCounted) {
  const std::string without_counts = R"("micro_batch_size": 2, "global_batch_size": )";
  const auto passes = [&](int batch) {
    config::Run run = run_of("", without_counts + std::to_string(batch));
    run.router.balance_coef = 0;
    const CpuStep step = predict_cpu_step(run, kQuick);
    return step.total() - step.optimizer;
  };
  const double times = passes(16) / passes(2);
  EXPECT_GT(times, 8 / 2.5);
  EXPECT_LT(times, 8 * 2.5);
}

}  // namespace
}  // namespace switchyard::plan
