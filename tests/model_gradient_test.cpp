// The gradient of the whole model, of every parameter, against finite differences in double.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "config/layouts.h"
#include "gradient_check.h"
#include "model_test_support.h"
#include "threads.h"

namespace switchyard::model {
namespace {

struct Case {
  std::string name;
  config::Model model;
  config::BalanceScope scope;
  std::function<void(TestBatch&)> masks;  // of a batch of two sequences of five
};

config::Model changed(const config::Layout& layout, const std::function<void(config::Model&)>& change) {
  config::Model model = tiny_model(layout);
  change(model);
  return model;
}

// A ramp in the middle of two pairs, and a factor on cos and sin.
void add_yarn(config::Model& model) {
  model.rope.type = config::RopeType::yarn;
  model.rope.factor = 4;
  model.rope.original_max_position_embeddings = 64;
  model.rope.attention_factor = 1.2;
}

std::vector<Case> cases() {
  using config::BalanceScope;
  using config::Layout, config::kMixtral, config::kQwen3Moe, config::kDeepseekV3;
  const auto none = [](TestBatch&) {};
  return {
      {"Qwen3Moe", tiny_model(kQwen3Moe), BalanceScope::global_batch, none},
      {"Qwen3MoeDocumentMask", tiny_model(kQwen3Moe), BalanceScope::sequence,
       [](TestBatch& batch) {
         batch.kv_begin(0, {0, 0, 2, 2, 2}).kv_begin(1, {0, 1, 1, 1, 1});
       }},
      {"Qwen3MoeOneDenseLayerTiedWeightsAsTheyAre",
       changed(kQwen3Moe,
               [](config::Model& model) {
                 config::set_layers(model, {false, true});
                 model.tie_word_embeddings = true;
                 model.norm_topk_prob = false;
               }),
       BalanceScope::layer, none},
      {"MixtralSlidingWindowOfTwo", tiny_model(kMixtral), BalanceScope::model,
       [](TestBatch& batch) {
         batch.kv_begin(0, {0, 0, 1, 2, 3}).kv_begin(1, {0, 0, 1, 2, 3});
       }},
      {"MixtralTied", changed(kMixtral, [](config::Model& model) { model.tie_word_embeddings = true; }),
       BalanceScope::global_batch, none},
      {"MixtralLinearRope",
       changed(kMixtral,
               [](config::Model& model) {
                 model.rope.type = config::RopeType::linear;
                 model.rope.factor = 3;
               }),
       BalanceScope::layer, none},
      {"NormsOfTheWholeProjection",
       changed(kQwen3Moe, [](config::Model& model) { model.qk_norm = config::QkNorm::projection; }),
       BalanceScope::layer, none},
      {"Qwen3MoeAttentionBias", changed(kQwen3Moe, [](config::Model& model) { model.attention_bias = true; }),
       BalanceScope::layer, none},
      {"Qwen3MoeYarn", changed(kQwen3Moe, add_yarn), BalanceScope::layer, none},
      {"DeepseekV3", tiny_model(kDeepseekV3), BalanceScope::sequence, none},
      {"DeepseekV3QueriesUncompressedHalvesNoSharedExpertWeightsAsTheyAre",
       changed(kDeepseekV3,
               [](config::Model& model) {
                 model.mla->q_lora_rank = 0;
                 model.rope.interleaved = false;
                 model.n_shared_experts = 0;
                 model.norm_topk_prob = false;
               }),
       BalanceScope::global_batch, none},
      {"DeepseekV3FirstLayerDenseTwoSharedExpertsTiedDocumentMask",
       changed(kDeepseekV3,
               [](config::Model& model) {
                 config::set_layers(model, {false, true});
                 model.n_shared_experts = 2;
                 model.tie_word_embeddings = true;
               }),
       BalanceScope::sequence,
       [](TestBatch& batch) {
         batch.kv_begin(0, {0, 0, 2, 2, 2}).kv_begin(1, {0, 1, 1, 1, 1});
       }},
      {"DeepseekV3AttentionBiasOneGroup",
       changed(kDeepseekV3,
               [](config::Model& model) {
                 model.attention_bias = true;
                 model.n_group = 1;
               }),
       BalanceScope::layer, none},
      {"DeepseekV3AttentionBiasQueriesUncompressed",
       changed(kDeepseekV3,
               [](config::Model& model) {
                 model.attention_bias = true;
                 model.mla->q_lora_rank = 0;
               }),
       BalanceScope::model, none},
      {"DeepseekV3Yarn",
       changed(kDeepseekV3,
               [](config::Model& model) {
                 add_yarn(model);
                 model.softmax_scale_factor = 1.3;
               }),
       BalanceScope::sequence, none},
      {"DeepseekV3MtpOneDepth",
       changed(kDeepseekV3, [](config::Model& model) { model.num_nextn_predict_layers = 1; }),
       BalanceScope::sequence, none},
      {"DeepseekV3MtpTwoDepthsTied",
       changed(kDeepseekV3,
               [](config::Model& model) {
                 model.num_nextn_predict_layers = 2;
                 model.tie_word_embeddings = true;
               }),
       BalanceScope::global_batch, none},
      {"DeepseekV3MtpTwoDepthsDocumentMask",
       changed(kDeepseekV3, [](config::Model& model) { model.num_nextn_predict_layers = 2; }),
       BalanceScope::layer,
       [](TestBatch& batch) {
         batch.kv_begin(0, {0, 0, 0, 3, 3}).kv_begin(1, {0, 0, 0, 3, 4});
       }},
      {"DeepseekV3MtpDense",
       changed(kDeepseekV3,
               [](config::Model& model) {
                 config::set_layers(model, {true, false});
                 model.num_nextn_predict_layers = 1;
               }),
       BalanceScope::sequence, none},
      {"Dense",
       changed(kQwen3Moe,
               [](config::Model& model) {
                 config::set_layers(model, {false, false});
               }),
       BalanceScope::layer, none},
  };
}

class ModelGradient : public ::testing::TestWithParam<Case> {};

TEST_P(ModelGradient, OfEveryParameterMatchesFiniteDifferences) {
  const Case& test_case = GetParam();
  // One thread: a team is not worth its start for ten tokens.
  test::with_threads(1, [&] {
    ReadyModel model(test_case.model, DType::f64, 2, 5, true, all_losses(test_case.scope));
    TestBatch batch(2, 5);
    batch.sequence(0, {3, 1, 4, 1, 5}).sequence(1, {9, 2, 6});  // two tokens of padding
    test_case.masks(batch);

    // A micro-batch of 8 of the 20 tokens of its global batch; the counts of the rest are made up.
    model.forward(batch.batch(), model.ctx);
    model.forward_mtp(batch.batch(), model.ctx);
    const std::vector<double> own_counts = counts_of(model);
    std::vector<double> count_LE = own_counts;
    for (std::size_t i = 0; i < count_LE.size(); ++i) count_LE[i] += static_cast<double>(i % 4);
    const GlobalBatch global{.n_tokens = 20, .n_sequences = 5, .count_LE = count_LE};

    // f_i is a constant to the balance loss's gradient: the perturbed losses keep these counts.
    const bool routed = model.routing().n_layers() > 0;
    const test::OwnedTensor frozen(routed ? model.routing().counts().count_LBE.shape() : Shape{0}, DType::i32);
    if (routed) test::fill(frozen, test::values(model.routing().counts().count_LBE));
    std::vector<double> mtp_dloss_K{0.3, 0.2};  // one a depth, different ones
    mtp_dloss_K.resize(static_cast<std::size_t>(model.n_mtp_depths()));
    const auto loss = [&] {
      model.forward(batch.batch(), model.ctx);
      model.forward_mtp(batch.batch(), model.ctx);
      model.loss(model.loss_T, batch.batch(), model.ctx);
      model.mtp_loss(model.mtp_loss_KT, model.ctx);
      // A step over the border between two choices has no derivative to compare with.
      EXPECT_EQ(counts_of(model), own_counts);
      if (routed) test::fill(model.routing().counts().count_LBE, test::values(frozen));
      const AuxiliaryLosses auxiliary = compute_auxiliary(model, batch, global);
      return sum_of(model.loss_T) / 20 + weighted_mtp_loss(model, mtp_dloss_K) + auxiliary.balance +
             auxiliary.z + auxiliary.others;
    };

    const Losses losses = forward_backward(model, batch, global, mtp_dloss_K);
    EXPECT_NEAR(losses.sum(), loss(), 1e-14);  // the same terms, added up in another order
    if (model.n_mtp_depths() > 0) {
      EXPECT_GT(losses.mtp, 0.1);
    }
    if (routed) {
      EXPECT_GT(losses.balance, 0.01);
      EXPECT_NE(losses.others, 0);
      if (test_case.model.layout != &config::kDeepseekV3) {
        EXPECT_GT(losses.z, 0.01);
      }
    }
    // A bias that only chooses has no gradient, and none by differences either.
    for (std::size_t i = 0; i < model.parameters().rows().size(); ++i) {
      const std::vector<double> analytic = test::values(model.parameters().grad(i));
      // The loss is a sum of eight tokens' terms; GradientTolerance's defaults hold for it.
      EXPECT_TRUE(test::gradient_matches(model.parameters().value(i), analytic, loss))
          << model.parameters().rows()[i].name;
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Layouts, ModelGradient, ::testing::ValuesIn(cases()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace switchyard::model
