#include <gtest/gtest.h>

#include "config/layouts.h"
#include "model_test_support.h"

namespace switchyard::model {
namespace {

using config::Recompute;

struct Result {
  std::vector<double> losses, grads, counts;
  std::int64_t activation_bytes = 0;
};

// Two micro-batches of one step, with all losses, from the same weights.
Result train_twice(const config::Model& config, Recompute recompute) {
  ReadyModel model(config, DType::f32, 2, 6, true, all_losses(config::BalanceScope::layer));
  model.plan(2, 6, model.ctx, recompute);
  model.ctx.scratch.set_poison(true);
  TestBatch first(2, 6), second(2, 6);
  first.sequence(0, {1, 2, 3, 4, 5, 6}).sequence(1, {7, 6, 5, 4});  // two of padding
  second.sequence(0, {4, 4, 2, 1, 0, 3}).sequence(1, {2, 7, 1, 1, 5, 6});
  const std::vector<double> mtp_dloss_K(static_cast<std::size_t>(model.n_mtp_depths()), 0.3);
  const Tensor grads = model.parameters().grads();
  for (std::int64_t i = 0; i < grads.numel(); ++i) test::set(grads, i, 0);
  Result result;
  for (const TestBatch* batch : {&first, &second}) {
    const Losses losses = forward_backward(model, *batch, {.n_tokens = 22, .n_sequences = 4}, mtp_dloss_K);
    result.losses.push_back(losses.sum());
    for (const double count : counts_of(model)) result.counts.push_back(count);  // after the backward pass
  }
  result.grads = test::values(grads);
  result.activation_bytes = model.measure_activations(2, 6, recompute);
  return result;
}

class Recomputing : public ::testing::TestWithParam<const config::Layout*> {};

// What is made again is the same bit for bit, and counts nothing twice.
TEST_P(Recomputing, ChangesNeitherLossesNorGradientsNorCounts) {
  config::Model config = tiny_model(*GetParam());
  const Result kept = train_twice(config, Recompute::none);
  for (const Recompute recompute : {Recompute::swiglu, Recompute::block}) {
    SCOPED_TRACE(static_cast<int>(recompute));
    const Result again = train_twice(config, recompute);
    EXPECT_EQ(again.losses, kept.losses);
    EXPECT_EQ(again.grads, kept.grads);
    EXPECT_EQ(again.counts, kept.counts);
    EXPECT_LT(again.activation_bytes, kept.activation_bytes);
  }
}

INSTANTIATE_TEST_SUITE_P(Model, Recomputing,
                         ::testing::Values(&config::kMixtral, &config::kQwen3Moe, &config::kDeepseekV3));

}  // namespace
}  // namespace switchyard::model
