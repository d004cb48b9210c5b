#include "config/layouts.h"
#include "model/cost.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "model_test_support.h"

namespace switchyard::model {
namespace {

// One layer: q 8x8, k and v 4x8 each, o 8x8; two norms of 8; gate 4x8; four experts of 3 * 3x8.
constexpr std::int64_t kAttention = 64 + 32 + 32 + 64, kNorms = 8 + 8, kGate = 32, kExpert = 72;
constexpr std::int64_t kEmbedding = 11 * 8, kFinalNorm = 8;

TEST(ParameterCount, OfMixtralByHand) {
  const ParameterCount count = count_parameters(tiny_model(config::kMixtral), config::Router{});
  EXPECT_EQ(count.total, 2 * kEmbedding + kFinalNorm + 2 * (kAttention + kNorms + kGate + 4 * kExpert));
  EXPECT_EQ(count.active, 2 * kEmbedding + kFinalNorm + 2 * (kAttention + kNorms + kGate + 2 * kExpert));
  EXPECT_EQ(count.active_matmul, kEmbedding + 2 * (kAttention + kGate + 2 * kExpert));
}

TEST(ParameterCount, OfTiedQwen3MoeWithADenseLayerByHand) {
  config::Model config = tiny_model(config::kQwen3Moe);
  config::set_layers(config, {false, true});
  config.tie_word_embeddings = true;
  constexpr std::int64_t kQueryKeyNorms = 4 + 4, kDense = 3 * 6 * 8;
  const ParameterCount count = count_parameters(config, config::Router{});
  const std::int64_t rest =
      kEmbedding + kFinalNorm + 2 * (kAttention + kNorms + kQueryKeyNorms) + kDense + kGate;
  EXPECT_EQ(count.total, rest + 4 * kExpert);
  EXPECT_EQ(count.active, rest + 2 * kExpert);
  EXPECT_EQ(count.active_matmul, kEmbedding + 2 * kAttention + kDense + kGate + 2 * kExpert);
}

TEST(ParameterCount, OfDeepseekV3WithADenseLayerByHand) {
  config::Model config = tiny_model(config::kDeepseekV3);
  config::set_layers(config, {false, true});
  // q_a 6x8, q_b 14x6, kv_a 9x8, kv_b 16x5, o 8x10; norms of 6 and 5; shared expert 3 * 3x8; bias of 4.
  constexpr std::int64_t kLatent = 48 + 84 + 72 + 80 + 80, kLatentNorms = 6 + 5, kDense = 3 * 6 * 8, kBias = 4;
  const ParameterCount count =
      count_parameters(config, config::default_router(*config.layout, router::router_schemas()));
  const std::int64_t rest =
      2 * kEmbedding + kFinalNorm + 2 * (kLatent + kNorms + kLatentNorms) + kDense + kGate + kBias + kExpert;
  EXPECT_EQ(count.total, rest + 4 * kExpert);
  EXPECT_EQ(count.active, rest + 2 * kExpert);
  EXPECT_EQ(count.active_matmul, kEmbedding + 2 * kLatent + kDense + kGate + kExpert + 2 * kExpert);
}

TEST(ParameterCount, PartsMakeTheTotal) {
  config::Model config = tiny_model(config::kDeepseekV3);
  config::set_layers(config, {false, true});
  const ParameterCount count =
      count_parameters(config, config::default_router(*config.layout, router::router_schemas()));
  const std::vector<std::pair<std::string, std::int64_t>> expected{
      {"embedding", kEmbedding},
      {"attention", 2 * (48 + 84 + 72 + 80 + 80 + 6 + 5)},
      {"norms", 2 * kNorms + kFinalNorm},
      {"dense layers", 3 * 6 * 8},
      {"router", kGate + 4},
      {"shared experts", kExpert},
      {"experts", 4 * kExpert},
      {"head", kEmbedding}};
  EXPECT_EQ(count.parts, expected);
  std::int64_t sum = 0;
  for (const auto& [part, values] : count.parts) sum += values;
  EXPECT_EQ(sum, count.total);
}

TEST(ParameterCount, OfADenseModelIsAllActive) {
  config::Model config = tiny_model(config::kQwen3Moe);
  config::set_layers(config, {false, false});
  const ParameterCount count = count_parameters(config, config::Router{});
  EXPECT_EQ(count.total, count.active);
}

}  // namespace
}  // namespace switchyard::model
