// Multi-token prediction in the whole model; its gradients are in model_gradient_test.cpp.
#include <gtest/gtest.h>

#include "config/layouts.h"
#include "model/cost.h"
#include "model_test_support.h"
#include "threads.h"

namespace switchyard::model {
namespace {

config::Model with_depths(std::int64_t depths) {
  config::Model model = tiny_model(config::kDeepseekV3);
  model.num_nextn_predict_layers = depths;
  return model;
}

TestBatch one_batch() {
  TestBatch batch(2, 6);
  batch.sequence(0, {3, 1, 4, 1, 5, 9}).sequence(1, {2, 6, 5, 3});
  return batch;
}

const config::Router kRouter = all_losses(config::BalanceScope::sequence);

Losses step(ReadyModel& model, const TestBatch& batch, std::span<const double> dloss_K) {
  for (std::int64_t i = 0; i < model.parameters().grads().numel(); ++i)
    test::set(model.parameters().grads(), i, 0);
  return forward_backward(model, batch, {.n_tokens = 10, .n_sequences = 2}, dloss_K);
}

TEST(ModelMtp, CountsTargetsByDepth) {
  test::with_threads(1, [] {
    TestBatch batch = one_batch();
    const auto counts = [&] {
      return std::vector<std::int64_t>{mtp_target_count(batch.batch(), 1), mtp_target_count(batch.batch(), 2),
                                       mtp_target_count(batch.batch(), 3)};
    };
    EXPECT_EQ(counts(), (std::vector<std::int64_t>{8, 6, 4}));
    batch.kv_begin(0, {0, 0, 0, 3, 3, 3});  // two documents of three instead of one of six
    EXPECT_EQ(counts(), (std::vector<std::int64_t>{7, 4, 1}));
  });
}

TEST(ModelMtp, PoisonBeforeAStepChangesNoBit) {
  test::with_threads(1, [] {
    for (const DType dtype : {DType::f32, DType::f64}) {
      ReadyModel model(with_depths(2), dtype, 2, 6, true, kRouter);
      TestBatch batch = one_batch();
      batch.kv_begin(0, {0, 0, 0, 3, 3, 3});
      const std::vector<double> dloss_K = {0.2, 0.1};
      const double expected = step(model, batch, dloss_K).sum();
      const std::vector<double> grads = test::values(model.parameters().grads());
      model.poison_activations(model.ctx);
      model.ctx.scratch.set_poison(true);
      EXPECT_EQ(step(model, batch, dloss_K).sum(), expected);
      EXPECT_EQ(test::values(model.parameters().grads()), grads);
    }
  });
}

// The main model's own weights and gradients do not know of the layers behind it, unless their loss is asked
// for.
TEST(ModelMtp, WithoutItsLossTheMainModelIsTheSameBitForBit) {
  test::with_threads(1, [] {
    ReadyModel with(with_depths(2), DType::f32, 2, 6), without(with_depths(0), DType::f32, 2, 6);
    with.parameters().initialise(7);
    without.parameters().initialise(7);
    const TestBatch batch = one_batch();
    for (ReadyModel* model : {&with, &without}) {
      model->forward(batch.batch(), model->ctx);
      for (std::int64_t l = 0; l < model->routing().n_layers(); ++l) {
        const Tensor& dprob_BE = model->routing().routing(l).loss.dprob_BE;
        for (std::int64_t i = 0; i < dprob_BE.numel(); ++i) test::set(dprob_BE, i, 0.01);
      }
      model->loss_and_backward(model->loss_T, batch.batch(), 0.1, model->ctx);
    }
    EXPECT_EQ(test::values(with.loss_T), test::values(without.loss_T));
    for (std::size_t i = 0; i < with.parameters().rows().size(); ++i) {
      const std::string& name = with.parameters().rows()[i].name;
      if (i < without.parameters().rows().size()) {
        ASSERT_EQ(name, without.parameters().rows()[i].name);
        EXPECT_EQ(test::values(with.parameters().grad(i)), test::values(without.parameters().grad(i))) << name;
      } else {
        EXPECT_TRUE(name.starts_with("model.layers.2.") || name.starts_with("model.layers.3.")) << name;
        for (const double value : test::values(with.parameters().grad(i))) ASSERT_EQ(value, 0.0) << name;
      }
    }
  });
}

TEST(ModelMtp, AModelForEvaluationHasTheRowsAndComputesNothing) {
  ReadyModel with(with_depths(1), DType::f32, 2, 6, false), without(with_depths(0), DType::f32, 2, 6, false);
  EXPECT_GT(with.parameters().count(), without.parameters().count());
  EXPECT_EQ(with.measure_activations(2, 6), without.measure_activations(2, 6));
  EXPECT_EQ(with.n_mtp_depths(), 0);
  EXPECT_EQ(with.routing().n_layers(), 2);
}

TEST(ModelMtp, RowsAreThoseOfThePublicFiles) {
  const Transformer model(with_depths(1), kRouter, DType::f32, true);
  EXPECT_EQ(model.routing().n_main_layers(), 2);
  EXPECT_EQ(model.routing().n_layers(), 3);
  EXPECT_EQ(model.routing().layer(2).layer(), 2);
  std::vector<std::string> names;
  for (const Parameter& row : model.parameters().rows())
    if (row.name.starts_with("model.layers.2.") && row.name.find(".mlp.") == std::string::npos)
      names.push_back(row.name.substr(std::string("model.layers.2.").size()));
  const std::vector<std::string> expected = {"enorm.weight",
                                             "hnorm.weight",
                                             "eh_proj.weight",
                                             "input_layernorm.weight",
                                             "self_attn.q_a_proj.weight",
                                             "self_attn.q_a_layernorm.weight",
                                             "self_attn.q_b_proj.weight",
                                             "self_attn.kv_a_proj_with_mqa.weight",
                                             "self_attn.kv_a_layernorm.weight",
                                             "self_attn.kv_b_proj.weight",
                                             "self_attn.o_proj.weight",
                                             "post_attention_layernorm.weight",
                                             "shared_head.norm.weight"};
  EXPECT_EQ(names, expected);
}

TEST(ModelMtp, IsCountedApart) {
  const config::Router router = config::default_router(config::kDeepseekV3, router::router_schemas());
  const ParameterCount without = count_parameters(with_depths(0), router);
  const ParameterCount with = count_parameters(with_depths(2), router);
  EXPECT_EQ(without.mtp, 0);
  EXPECT_EQ(with.total, without.total);
  EXPECT_EQ(with.active_matmul, without.active_matmul);
  // Three norms of 8 and eh_proj 8x16 besides the block: latent attention, its norms, the block's two, the
  // router 4x8 with 4 biases, a shared expert and four more of 3 * 3x8.
  EXPECT_EQ(with.mtp, 2 * (3 * 8 + 128 + 48 + 84 + 72 + 80 + 80 + 11 + 16 + 36 + 5 * 72));
}

}  // namespace
}  // namespace switchyard::model
