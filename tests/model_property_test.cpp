// What must hold for the model whatever its weights: which inputs a loss depends on, and that memory left over
// from before is never read.
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "config/layouts.h"
#include "model_test_support.h"
#include "threads.h"

namespace switchyard::model {
namespace {

using config::BalanceScope;
using config::Layout, config::kMixtral, config::kQwen3Moe, config::kDeepseekV3;
using test::OwnedTensor;
using test::same_bits;
using test::values;

constexpr const Layout* kLayoutsHere[] = {&kMixtral, &kQwen3Moe, &kDeepseekV3};

// A team of threads is not worth its start for a dozen tokens; where threads matter, a test says how many.
class OneThread : public ::testing::Test {
 protected:
  void SetUp() override { omp_set_num_threads(1); }
  void TearDown() override { omp_set_num_threads(before_); }

 private:
  int before_ = omp_get_max_threads();
};
using ModelMemory = OneThread;
using ModelPadding = OneThread;
using ModelAccumulation = OneThread;
using ModelExperts = OneThread;
using ModelAttention = OneThread;

OwnedTensor copy_of(const Tensor& tensor) {
  OwnedTensor copy(tensor.shape(), tensor.dtype());
  test::fill(copy, values(tensor));
  return copy;
}

// A dense and an expert layer; padding and document borders.
config::Model mixed_model(const Layout& layout) {
  config::Model model = tiny_model(layout);
  if (layout == kQwen3Moe) {
    model.num_hidden_layers = 3;
    config::set_layers(model, {true, false, true});
  }
  if (layout == kDeepseekV3) {
    model.num_hidden_layers = 3;
    config::set_layers(model, {false, true, true});
    model.attention_bias = true;
  }
  return model;
}
TestBatch mixed_batch() {
  TestBatch batch(2, 6);
  batch.sequence(0, {3, 1, 4, 1, 5, 9}).sequence(1, {2, 6, 5, 3}).kv_begin(0, {0, 0, 2, 2, 2, 2});
  return batch;
}

std::vector<double> forward_losses(ReadyModel& model, const TestBatch& batch) {
  model.forward(batch.batch(), model.ctx);
  model.loss(model.loss_T, batch.batch(), model.ctx);
  return values(model.loss_T);
}

void expect_poison_changes_no_bit(const Layout& layout, DType dtype) {
  ReadyModel model(mixed_model(layout), dtype, 2, 6, true, all_losses(BalanceScope::global_batch));
  const TestBatch batch = mixed_batch();
  const Losses expected = forward_backward(model, batch);
  const OwnedTensor loss_T = copy_of(model.loss_T), grads = copy_of(model.parameters().grads());

  model.poison_activations(model.ctx);
  model.ctx.scratch.set_poison(true);
  const Losses actual = forward_backward(model, batch);
  EXPECT_EQ(actual.sum(), expected.sum());
  EXPECT_TRUE(same_bits(model.loss_T, loss_T));
  EXPECT_TRUE(same_bits(model.parameters().grads(), grads));
}

TEST_F(ModelMemory, PoisonBeforeAStepChangesNoBit) {
  for (const Layout* layout : kLayoutsHere)
    for (const DType dtype : {DType::f32, DType::f64}) expect_poison_changes_no_bit(*layout, dtype);
}

TEST_F(ModelMemory, PoisonChangesNoBitOnTwoThreads) {
  test::with_threads(2, [] { expect_poison_changes_no_bit(kQwen3Moe, DType::f32); });
}

TEST_F(ModelMemory, TheSameStepTwiceGivesTheSameBits) {
  for (const int threads : {1, 2})
    test::with_threads(threads, [] {
      const config::Router losses = all_losses(BalanceScope::sequence);
      ReadyModel model(mixed_model(kQwen3Moe), DType::f32, 2, 6, true, losses);
      ReadyModel other(mixed_model(kQwen3Moe), DType::f32, 2, 6, true, losses);
      const TestBatch batch = mixed_batch();
      const double first = forward_backward(model, batch).sum();
      const OwnedTensor grads = copy_of(model.parameters().grads());
      EXPECT_EQ(forward_backward(model, batch).sum(), first);
      EXPECT_TRUE(same_bits(model.parameters().grads(), grads));
      EXPECT_EQ(forward_backward(other, batch).sum(), first);
      EXPECT_TRUE(same_bits(other.parameters().grads(), grads));
    });
}

TEST_F(ModelMemory, AModelForEvaluationHasTheSameLosses) {
  for (const Layout* layout : kLayoutsHere) {
    ReadyModel training(mixed_model(*layout), DType::f32, 2, 6);
    ReadyModel evaluating(mixed_model(*layout), DType::f32, 2, 6, false);
    evaluating.poison_activations(evaluating.ctx);
    const TestBatch batch = mixed_batch();
    EXPECT_EQ(forward_losses(evaluating, batch), forward_losses(training, batch));
    EXPECT_EQ(counts_of(evaluating), counts_of(training));
    EXPECT_THROW(evaluating.loss_and_backward(evaluating.loss_T, batch.batch(), 1, evaluating.ctx),
                 std::logic_error);
    EXPECT_LT(evaluating.measure_activations(2, 6), training.measure_activations(2, 6));
  }
}

TEST_F(ModelMemory, ABatchThatWasNotPlannedIsRefused) {
  ReadyModel model(tiny_model(kMixtral), DType::f32, 2, 6);
  EXPECT_THROW(model.forward(TestBatch(2, 5).batch(), model.ctx), std::logic_error);
  EXPECT_THROW(model.forward(TestBatch(3, 6).batch(), model.ctx), std::logic_error);
  EXPECT_THROW(model.forward(TestBatch(6, 2).batch(), model.ctx), std::logic_error);
}

// Gradients are sums of some hundred terms of order one in double; padding and cutting change only their
// grouping.
constexpr double kRelative = 1e-11, kAbsolute = 1e-13;

TEST_F(ModelPadding, ChangesNoLossNoCountAndNoGradient) {
  for (const Layout* layout : kLayoutsHere)
    for (const BalanceScope scope :
         {BalanceScope::layer, BalanceScope::sequence, BalanceScope::global_batch, BalanceScope::model}) {
      const config::Router losses = all_losses(scope);
      ReadyModel bare(mixed_model(*layout), DType::f64, 2, 4, true, losses);
      ReadyModel padded(mixed_model(*layout), DType::f64, 4, 7, true, losses);
      TestBatch bare_batch(2, 4), padded_batch(4, 7);
      bare_batch.sequence(0, {3, 1, 4, 1}).sequence(1, {2, 7, 1, 8});
      padded_batch.sequence(0, {3, 1, 4, 1}).sequence(2, {2, 7, 1, 8});  // 1 and 3 are all padding
      const Losses expected = forward_backward(bare, bare_batch);
      const Losses actual = forward_backward(padded, padded_batch);
      EXPECT_NEAR(actual.cross_entropy, expected.cross_entropy, kAbsolute);
      EXPECT_NEAR(actual.balance, expected.balance, kAbsolute);
      EXPECT_NEAR(actual.z, expected.z, kAbsolute);
      EXPECT_EQ(counts_of(padded), counts_of(bare));
      EXPECT_TRUE(test::all_near(values(padded.parameters().grads()), values(bare.parameters().grads()),
                                 kRelative, kAbsolute));
    }
}

TEST_F(ModelAccumulation, FourSequencesAreTheSumOfOneAtATime) {
  for (const BalanceScope scope : {BalanceScope::sequence, BalanceScope::global_batch}) {
    const config::Router losses = all_losses(scope);
    const config::Model config = mixed_model(kQwen3Moe);
    const std::vector<std::vector<int>> sequences = {{3, 1, 4, 1, 5}, {9, 2, 6}, {5, 3, 5, 8, 9}, {7, 9, 3, 2}};
    ReadyModel whole(config, DType::f64, 4, 5, true, losses), parts(config, DType::f64, 1, 5, true, losses);
    TestBatch whole_batch(4, 5);
    for (std::size_t b = 0; b < 4; ++b) whole_batch.sequence(static_cast<std::int64_t>(b), sequences[b]);
    const Losses expected = forward_backward(whole, whole_batch);
    const std::vector<double> count_LE = counts_of(whole);

    Losses sum;
    for (const auto& sequence : sequences) {
      TestBatch batch(1, 5);
      batch.sequence(0, sequence);
      sum += forward_backward(parts, batch, {.n_tokens = 17, .n_sequences = 4, .count_LE = count_LE});
    }
    EXPECT_NEAR(sum.cross_entropy, expected.cross_entropy, kAbsolute);
    EXPECT_NEAR(sum.balance, expected.balance, kAbsolute);
    EXPECT_NEAR(sum.z, expected.z, kAbsolute);
    EXPECT_TRUE(test::all_near(values(parts.parameters().grads()), values(whole.parameters().grads()),
                               kRelative, kAbsolute));
  }
}

TEST_F(ModelExperts, CountsSumToTokensTimesSlots) {
  for (const Layout* layout : kLayoutsHere) {
    ReadyModel model(mixed_model(*layout), DType::f32, 2, 6);
    forward_losses(model, mixed_batch());
    for (std::int64_t l = 0; l < model.routing().n_layers(); ++l) {
      const std::vector<double> count_BE = values(model.routing().routing(l).count_BE);
      EXPECT_EQ(std::accumulate(count_BE.begin(), count_BE.begin() + 4, 0.0), 6 * 2);
      EXPECT_EQ(std::accumulate(count_BE.begin() + 4, count_BE.end(), 0.0), 4 * 2);
    }
  }
}

TEST_F(ModelExperts, DecisionsAreOfTheLastForwardPassOfEachLayer) {
  for (const Layout* layout : kLayoutsHere) {
    ReadyModel model(mixed_model(*layout), DType::f32, 2, 6);
    forward_losses(model, mixed_batch());
    const auto decisions = model.routing().decisions();
    ASSERT_EQ(static_cast<std::int64_t>(decisions.size()), model.routing().n_layers());
    std::vector<double> count_LE(decisions.size() * 4, 0.0);
    for (std::size_t l = 0; l < decisions.size(); ++l) {
      EXPECT_EQ(decisions[l].expert_TK.shape(), (Shape{12, 2}));
      for (const double expert : values(decisions[l].expert_TK))
        if (expert >= 0) count_LE[l * 4 + static_cast<std::size_t>(expert)] += 1;
    }
    EXPECT_EQ(count_LE, counts_of(model));
    const ReadyModel evaluating(mixed_model(*layout), DType::f32, 2, 6, false);
    EXPECT_THROW(evaluating.routing().decisions(), std::logic_error);
  }
}

// The loss is what the logits say.
TEST_F(ModelMemory, LogitsAreThoseOfTheLoss) {
  for (const bool tied : {false, true}) {
    config::Model config = mixed_model(kDeepseekV3);
    config.tie_word_embeddings = tied;
    ReadyModel model(config, DType::f64, 2, 6);
    const TestBatch batch = mixed_batch();
    const std::vector<double> loss = forward_losses(model, batch);
    const OwnedTensor logits_TV({12, 11}, DType::f64);
    model.logits(logits_TV, model.ctx);
    for (std::int64_t t = 0; t < 12; ++t) {
      const auto target = static_cast<std::int64_t>(test::get(batch.batch().target_T, t));
      if (target < 0) continue;
      double sum = 0;
      for (std::int64_t v = 0; v < 11; ++v) sum += std::exp(logits_TV[t * 11 + v]);
      // A dozen exponentials and a logarithm, of numbers of order one.
      EXPECT_NEAR(std::log(sum) - logits_TV[t * 11 + target], loss[static_cast<std::size_t>(t)], 1e-13);
    }
  }
}

TEST_F(ModelExperts, AfterAStepEveryRouterSeesItsOwnCounts) {
  ReadyModel model(mixed_model(kDeepseekV3), DType::f64, 2, 6);
  std::vector<Tensor> bias_L;
  for (std::size_t i = 0; i < model.parameters().rows().size(); ++i)
    if (!model.parameters().rows()[i].trained) bias_L.push_back(model.parameters().value(i));
  ASSERT_EQ(bias_L.size(), 2u);
  for (const Tensor& bias : bias_L) test::fill(bias, {0, 0, 0, 0});
  test::fill(model.routing().global_count_LE(), {3, 1, 2, 2, 0, 4, 4, 0});
  model.routing().after_step(model.ctx);
  const double speed =
      config::default_router(kDeepseekV3, router::router_schemas()).own.number("bias_update_speed");
  EXPECT_EQ(values(bias_L[0]), (std::vector<double>{-speed, speed, 0, 0}));
  EXPECT_EQ(values(bias_L[1]), (std::vector<double>{speed, -speed, -speed, speed}));
}

TEST_F(ModelExperts, OneWithoutTokensHasNoGradientAndDoesNoHarm) {
  config::Model config = tiny_model(kQwen3Moe);
  config.num_experts = 8;
  config.num_experts_per_tok = 1;
  ReadyModel model(config, DType::f32, 1, 3, true,
                   all_losses(BalanceScope::layer));  // three tokens: at least five experts of a layer are idle
  TestBatch batch(1, 3);
  batch.sequence(0, {3, 1, 4});
  const double expected = forward_backward(model, batch).sum();
  const std::vector<double> count_LE = counts_of(model);
  const OwnedTensor grads = copy_of(model.parameters().grads());
  ParameterStore& parameters = model.parameters();
  int idle_rows = 0;
  for (std::size_t i = 0; i < parameters.rows().size(); ++i) {
    for (std::size_t le = 0; le < count_LE.size(); ++le) {
      const std::string prefix =
          "model.layers." + std::to_string(le / 8) + ".mlp.experts." + std::to_string(le % 8) + ".";
      if (!parameters.rows()[i].name.starts_with(prefix)) continue;
      const std::vector<double> grad = values(parameters.grad(i));
      const std::vector<double> zero(grad.size(), 0.0);
      if (count_LE[le] > 0) {
        EXPECT_NE(grad, zero) << parameters.rows()[i].name;
        continue;
      }
      EXPECT_EQ(grad, zero) << parameters.rows()[i].name;
      test::poison(parameters.value(i));
      ++idle_rows;
    }
  }
  EXPECT_GE(idle_rows, 2 * 5 * 3);
  EXPECT_EQ(forward_backward(model, batch).sum(), expected);
  EXPECT_TRUE(same_bits(parameters.grads(), grads));
}

// In double, where the rows of a matrix product do not depend on one another in any bit.
std::vector<double> losses_of(const config::Model& config, const std::vector<int>& tokens,
                              const std::vector<int>& kv_begin) {
  const auto n = static_cast<std::int64_t>(tokens.size());
  ReadyModel model(config, DType::f64, 1, n);
  TestBatch batch(1, n);
  batch.sequence(0, tokens).kv_begin(0, kv_begin);
  return forward_losses(model, batch);
}

TEST_F(ModelAttention, ATokenSeesNoLaterOne) {
  for (const Layout* layout : kLayoutsHere) {
    const auto before = losses_of(tiny_model(*layout), {3, 1, 4, 1, 5, 9}, {0, 0, 0, 0, 0, 0});
    const auto after = losses_of(tiny_model(*layout), {3, 1, 4, 1, 2, 9}, {0, 0, 0, 0, 0, 0});
    for (const std::size_t t : {0u, 1u, 2u}) EXPECT_EQ(before[t], after[t]);
    for (const std::size_t t : {3u, 4u, 5u})
      EXPECT_NE(before[t], after[t]);  // token 3 predicts the one that changed
  }
}

TEST_F(ModelAttention, ATokenSeesOnlyItsDocument) {
  const config::Model config = tiny_model(kQwen3Moe);
  const std::vector<int> borders = {0, 0, 0, 3, 3, 3}, none(6, 0);
  const auto before = losses_of(config, {3, 1, 4, 1, 5, 9}, borders);
  const auto after = losses_of(config, {3, 7, 4, 1, 5, 9}, borders);
  for (const std::size_t t : {0u, 1u, 2u}) EXPECT_NE(before[t], after[t]);
  for (const std::size_t t : {3u, 4u, 5u}) EXPECT_EQ(before[t], after[t]);
  const auto open_before = losses_of(config, {3, 1, 4, 1, 5, 9}, none);
  const auto open_after = losses_of(config, {3, 7, 4, 1, 5, 9}, none);
  for (const std::size_t t : {3u, 4u, 5u}) EXPECT_NE(open_before[t], open_after[t]);
}

TEST_F(ModelAttention, ADocumentHasTheLossesThatItHasAlone) {
  const config::Model config = tiny_model(kQwen3Moe);
  const auto packed = losses_of(config, {3, 1, 4, 8, 5, 9}, {0, 0, 0, 3, 3, 3});
  const auto alone = losses_of(config, {8, 5, 9}, {0, 0, 0});
  // Rotary positions are relative: three positions further on, only the rounding of the angles differs.
  for (std::size_t t = 0; t < 3; ++t) EXPECT_NEAR(packed[3 + t], alone[t], 1e-12);
}

TEST_F(ModelAttention, InOneLayerATokenSeesOnlyItsWindow) {
  config::Model config = tiny_model(kMixtral);
  config.num_hidden_layers = 1;
  config::set_layers(config, {true});
  const std::vector<int> window_of_three = {0, 0, 0, 1, 2, 3};
  const auto before = losses_of(config, {3, 1, 4, 1, 5, 9}, window_of_three);
  const auto after = losses_of(config, {3, 7, 4, 1, 5, 9}, window_of_three);
  for (const std::size_t t : {0u, 1u, 2u, 3u}) EXPECT_NE(before[t], after[t]);
  for (const std::size_t t : {4u, 5u}) EXPECT_EQ(before[t], after[t]);
}

std::vector<std::string> names_of(const config::Model& config) {
  std::vector<std::string> names;
  const Transformer model(config, config::default_router(*config.layout, router::router_schemas()), DType::f32,
                          false);
  for (const Parameter& row : model.parameters().rows()) names.push_back(row.name);
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<std::string> sorted(std::vector<std::string> names) {
  std::sort(names.begin(), names.end());
  return names;
}

TEST(ModelNames, OfQwen3MoeAreHuggingFaces) {
  config::Model config = tiny_model(kQwen3Moe);
  config.num_experts = 2;
  config::set_layers(config, {false, true});
  EXPECT_EQ(names_of(config), sorted({
                                  "model.embed_tokens.weight",
                                  "model.layers.0.input_layernorm.weight",
                                  "model.layers.0.self_attn.q_proj.weight",
                                  "model.layers.0.self_attn.k_proj.weight",
                                  "model.layers.0.self_attn.v_proj.weight",
                                  "model.layers.0.self_attn.o_proj.weight",
                                  "model.layers.0.self_attn.q_norm.weight",
                                  "model.layers.0.self_attn.k_norm.weight",
                                  "model.layers.0.post_attention_layernorm.weight",
                                  "model.layers.0.mlp.gate_proj.weight",
                                  "model.layers.0.mlp.up_proj.weight",
                                  "model.layers.0.mlp.down_proj.weight",
                                  "model.layers.1.input_layernorm.weight",
                                  "model.layers.1.self_attn.q_proj.weight",
                                  "model.layers.1.self_attn.k_proj.weight",
                                  "model.layers.1.self_attn.v_proj.weight",
                                  "model.layers.1.self_attn.o_proj.weight",
                                  "model.layers.1.self_attn.q_norm.weight",
                                  "model.layers.1.self_attn.k_norm.weight",
                                  "model.layers.1.post_attention_layernorm.weight",
                                  "model.layers.1.mlp.gate.weight",
                                  "model.layers.1.mlp.experts.0.gate_proj.weight",
                                  "model.layers.1.mlp.experts.0.up_proj.weight",
                                  "model.layers.1.mlp.experts.0.down_proj.weight",
                                  "model.layers.1.mlp.experts.1.gate_proj.weight",
                                  "model.layers.1.mlp.experts.1.up_proj.weight",
                                  "model.layers.1.mlp.experts.1.down_proj.weight",
                                  "model.norm.weight",
                                  "lm_head.weight",
                              }));
}

TEST(ModelNames, OfMixtralAreHuggingFaces) {
  config::Model config = tiny_model(kMixtral);
  config.num_experts = 2;
  config.num_hidden_layers = 1;
  config::set_layers(config, {true});
  config.tie_word_embeddings = true;
  EXPECT_EQ(names_of(config), sorted({
                                  "model.embed_tokens.weight",
                                  "model.layers.0.input_layernorm.weight",
                                  "model.layers.0.self_attn.q_proj.weight",
                                  "model.layers.0.self_attn.k_proj.weight",
                                  "model.layers.0.self_attn.v_proj.weight",
                                  "model.layers.0.self_attn.o_proj.weight",
                                  "model.layers.0.post_attention_layernorm.weight",
                                  "model.layers.0.block_sparse_moe.gate.weight",
                                  "model.layers.0.block_sparse_moe.experts.0.w1.weight",
                                  "model.layers.0.block_sparse_moe.experts.0.w2.weight",
                                  "model.layers.0.block_sparse_moe.experts.0.w3.weight",
                                  "model.layers.0.block_sparse_moe.experts.1.w1.weight",
                                  "model.layers.0.block_sparse_moe.experts.1.w2.weight",
                                  "model.layers.0.block_sparse_moe.experts.1.w3.weight",
                                  "model.norm.weight",
                              }));
}

TEST(ModelNames, OfDeepseekV3AreHuggingFaces) {
  config::Model config = tiny_model(kDeepseekV3);
  config.num_experts = 2;
  config.n_group = 1;
  config::set_layers(config, {false, true});
  config.attention_bias = true;
  const std::vector<std::string> names = sorted({
      "model.embed_tokens.weight",
      "model.layers.0.input_layernorm.weight",
      "model.layers.0.self_attn.q_a_proj.weight",
      "model.layers.0.self_attn.q_a_proj.bias",
      "model.layers.0.self_attn.q_a_layernorm.weight",
      "model.layers.0.self_attn.q_b_proj.weight",
      "model.layers.0.self_attn.kv_a_proj_with_mqa.weight",
      "model.layers.0.self_attn.kv_a_proj_with_mqa.bias",
      "model.layers.0.self_attn.kv_a_layernorm.weight",
      "model.layers.0.self_attn.kv_b_proj.weight",
      "model.layers.0.self_attn.o_proj.weight",
      "model.layers.0.self_attn.o_proj.bias",
      "model.layers.0.post_attention_layernorm.weight",
      "model.layers.0.mlp.gate_proj.weight",
      "model.layers.0.mlp.up_proj.weight",
      "model.layers.0.mlp.down_proj.weight",
      "model.layers.1.input_layernorm.weight",
      "model.layers.1.self_attn.q_a_proj.weight",
      "model.layers.1.self_attn.q_a_proj.bias",
      "model.layers.1.self_attn.q_a_layernorm.weight",
      "model.layers.1.self_attn.q_b_proj.weight",
      "model.layers.1.self_attn.kv_a_proj_with_mqa.weight",
      "model.layers.1.self_attn.kv_a_proj_with_mqa.bias",
      "model.layers.1.self_attn.kv_a_layernorm.weight",
      "model.layers.1.self_attn.kv_b_proj.weight",
      "model.layers.1.self_attn.o_proj.weight",
      "model.layers.1.self_attn.o_proj.bias",
      "model.layers.1.post_attention_layernorm.weight",
      "model.layers.1.mlp.gate.weight",
      "model.layers.1.mlp.gate.e_score_correction_bias",
      "model.layers.1.mlp.shared_experts.gate_proj.weight",
      "model.layers.1.mlp.shared_experts.up_proj.weight",
      "model.layers.1.mlp.shared_experts.down_proj.weight",
      "model.layers.1.mlp.experts.0.gate_proj.weight",
      "model.layers.1.mlp.experts.0.up_proj.weight",
      "model.layers.1.mlp.experts.0.down_proj.weight",
      "model.layers.1.mlp.experts.1.gate_proj.weight",
      "model.layers.1.mlp.experts.1.up_proj.weight",
      "model.layers.1.mlp.experts.1.down_proj.weight",
      "model.norm.weight",
      "lm_head.weight",
  });
  EXPECT_EQ(names_of(config), names);

  // Uncompressed queries have one matrix, and never a bias.
  config.mla->q_lora_rank = 0;
  std::vector<std::string> direct;
  for (const std::string& name : names)
    if (name.find(".q_") == std::string::npos) direct.push_back(name);
  for (const char* layer : {"0", "1"})
    direct.push_back("model.layers." + std::string(layer) + ".self_attn.q_proj.weight");
  EXPECT_EQ(names_of(config), sorted(direct));
}

TEST(ModelNames, OfAttentionBiasesAreHuggingFaces) {
  config::Model config = tiny_model(kQwen3Moe);
  const std::vector<std::string> without = names_of(config);
  config.attention_bias = true;
  std::vector<std::string> expected = without;
  for (const char* layer : {"0", "1"})
    for (const char* name : {"q_proj", "k_proj", "v_proj", "o_proj"})
      expected.push_back("model.layers." + std::string(layer) + ".self_attn." + name + ".bias");
  EXPECT_EQ(names_of(config), sorted(expected));
}

TEST(ModelNames, ShapesDecayAndShardingGoWithThem) {
  for (const Layout* layout : kLayoutsHere) {
    const Transformer model(mixed_model(*layout), config::default_router(*layout, router::router_schemas()),
                            DType::f32, false);
    for (const Parameter& row : model.parameters().rows()) {
      const bool norm = row.name.find("norm") != std::string::npos;
      const bool expert = row.name.find(".experts.") != std::string::npos;
      const bool bias = row.name.ends_with("bias");
      EXPECT_EQ(row.shape.rank(), norm || bias ? 1 : 2) << row.name;
      EXPECT_EQ(row.weight_decay, !norm && !bias) << row.name;
      EXPECT_EQ(row.init, norm ? Init::ones : bias ? Init::zeros : Init::normal) << row.name;
      EXPECT_EQ(row.trained, !row.name.ends_with("e_score_correction_bias")) << row.name;
      EXPECT_EQ(row.sharding, expert ? Sharding::by_expert : Sharding::replicated) << row.name;
      const bool down = row.name.ends_with("down_proj.weight") || row.name.ends_with("w2.weight");
      if (expert) {
        EXPECT_EQ(row.shape, (down ? Shape{8, 3} : Shape{3, 8})) << row.name;
      }
    }
  }
}

}  // namespace
}  // namespace switchyard::model
