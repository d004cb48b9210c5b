// FLOPs by hand.
#include "config/layouts.h"
#include "model/cost.h"

#include <gtest/gtest.h>

#include "model_test_support.h"

namespace switchyard::model {
namespace {

// Two sequences of three, the last one padding from its second token on: 4 tokens, which see 1 + 2 + 3 + 1
// keys.
TestBatch batch() {
  TestBatch batch(2, 3);
  batch.sequence(0, {1, 2, 3}).sequence(1, {4});
  return batch;
}

TEST(Flops, TokensAndTheKeysThatTheySee) {
  const TokenCounts counts = count_tokens(batch().batch());
  EXPECT_EQ(counts.tokens, 4);
  EXPECT_EQ(counts.keys, 7);
  // The third token of the first sequence sees but itself.
  TestBatch masked = batch();
  masked.kv_begin(0, {0, 0, 2});
  EXPECT_EQ(count_tokens(masked.batch()).keys, 5);
}

// tiny_model of qwen3_moe: hidden 8, two query heads and one key-value head of width 4, experts 4 of width 3, K
// 2, vocabulary 11.
TEST(Flops, OfASmallModelByHand) {
  config::Model config = tiny_model(config::kQwen3Moe);
  config::set_layers(config, {true, false});
  ReadyModel model(config, DType::f32, 2, 3);
  const FlopCounter counter(model);
  const Flops flops = counter.count({.tokens = 4, .keys = 7}, std::vector<double>{5});
  ASSERT_EQ(flops.layers.size(), 2u);
  // q 8x8, k and v 4x8 each, o 8x8: 192 values; a key costs 2 heads * (4 + 4) multiply-adds
  const double attention = 4 * 2 * 192 + 7 * 2 * 2 * 8;
  for (const LayerFlops& layer : flops.layers) EXPECT_EQ(layer.attention, attention);
  EXPECT_EQ(flops.layers[0].router, 4 * 2 * 4 * 8);
  EXPECT_EQ(flops.layers[0].experts, 5 * 6 * 8 * 3);  // five slots of the eight that there are
  EXPECT_EQ(flops.layers[0].always, 0);
  EXPECT_EQ(flops.layers[1].router, 0);
  EXPECT_EQ(flops.layers[1].experts, 0);
  EXPECT_EQ(flops.layers[1].always, 4 * 6 * 8 * 6);  // the dense network's width is 6
  EXPECT_EQ(flops.head, 4 * 2 * 11 * 8);
  EXPECT_EQ(flops.total(), 2 * attention + 256 + 720 + 1152 + 704);
  EXPECT_EQ(counter.count_static({.tokens = 4, .keys = 7}).layers[0].experts, 8 * 6 * 8 * 3);
}

// Latent attention, values narrower than keys, and a shared expert; the slots are those of the forward pass.
TEST(Flops, OfLatentAttentionAndSharedExpertsFromRealDecisions) {
  ReadyModel model(tiny_model(config::kDeepseekV3), DType::f32, 2, 3);
  const TestBatch tokens = batch();
  model.forward(tokens.batch(), model.ctx);
  const std::vector<double> count_LE = counts_of(model);
  const double slots = std::accumulate(count_LE.begin(), count_LE.begin() + 4, 0.0);
  EXPECT_EQ(slots, 4 * 2);  // padding takes no slot
  const FlopCounter counter(model);
  const Flops flops = counter.count(count_tokens(tokens.batch()), std::vector<double>{slots, slots});
  // q_a 6x8, q_b 14x6, kv_a 9x8, kv_b 16x5, o 8x10; a key: 2 heads * (7 + 5)
  const double matrices = 6 * 8 + 14 * 6 + 9 * 8 + 16 * 5 + 8 * 10;
  EXPECT_EQ(flops.layers[1].attention, 4 * 2 * matrices + 7 * 2 * 2 * 12);
  EXPECT_EQ(flops.layers[1].always, 4 * 6 * 8 * 3);  // one shared expert of width 3
  EXPECT_EQ(flops.total(), counter.count_static(count_tokens(tokens.batch())).total());
}

}  // namespace
}  // namespace switchyard::model
