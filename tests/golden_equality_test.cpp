// A model of this project against the same one in `transformers`. The lists of cases stand in
// golden_<family>_test.cpp.
#include "golden_support.h"

namespace switchyard::golden {
namespace {

TEST_P(Golden, LogitsAndLossAreEqual) {
  here_.forward();
  EXPECT_TRUE(close_to(here_.logits(), golden_.expected("logits"), kForward));
  const GoldenModel::Loss loss = here_.loss_and_backward();
  const double cross_entropy = golden_.expected("cross_entropy").values[0];
  const double whole = golden_.expected("loss").values[0];
  // Both are means of float32 terms.
  EXPECT_NEAR(loss.cross_entropy, cross_entropy, 1e-5 * cross_entropy);
  EXPECT_NEAR(loss.cross_entropy + loss.balance, whole, 1e-5 * whole);
  // The balance loss alone: what is left of it after the subtraction carries the rounding of the whole.
  EXPECT_NEAR(loss.balance, whole - cross_entropy, 1e-6 * whole);
}

TEST_P(Golden, EveryTokenGoesToTheSameExpertsWithTheSameWeights) {
  here_.forward();
  const std::vector<router::RoutingSums> sums_L = here_.model().routing_sums();
  std::set<std::string> layers = golden_.names("experts.");
  ASSERT_EQ(sums_L.size(), layers.size());
  for (std::size_t l = 0; l < sums_L.size(); ++l) {
    const std::int64_t layer = here_.model().layer_of_router(static_cast<std::int64_t>(l));
    SCOPED_TRACE("layer " + std::to_string(layer));
    const Expected expert_TK = golden_.expected("experts." + std::to_string(layer));
    const Expected weight_TK = golden_.expected("weights." + std::to_string(layer));
    const std::int64_t n_slots = expert_TK.shape[1], n_experts = here_.model().config().num_experts;

    std::vector<double> count_BE(static_cast<std::size_t>(here_.n_seq() * n_experts), 0);
    for (std::size_t slot = 0; slot < expert_TK.values.size(); ++slot) {
      const std::int64_t b = static_cast<std::int64_t>(slot) / (n_slots * here_.seq_len());
      count_BE[static_cast<std::size_t>(b * n_experts + static_cast<std::int64_t>(expert_TK.values[slot]))] +=
          1;
    }
    EXPECT_EQ(test::values(sums_L[l].count_BE), count_BE);

    // Float32, as kForward.
    EXPECT_TRUE(close_to(here_.activation(layer, "mlp router weights"), weight_TK, kForward));
  }
}

TEST_P(Golden, GradientsOfAllParametersAreEqual) {
  here_.forward();
  here_.loss_and_backward();
  const ParameterStore& store = here_.model().parameters();
  std::set<std::string> unseen = golden_.names("grad.");
  for (std::size_t i = 0; i < store.rows().size(); ++i) {
    const std::string& name = store.rows()[i].name;
    if (unseen.erase(name) == 0) continue;
    EXPECT_TRUE(close_to(store.grad(i), golden_.expected("grad." + name), kGradient)) << name;
  }
  EXPECT_TRUE(unseen.empty()) << "no gradient here for " << *unseen.begin();
}

TEST_P(Golden, WeightsAreEqualAfterFiveSteps) {
  const nlohmann::json& options = golden_.optimizer();
  config::Train train;
  train.beta1 = options.at("beta1");
  train.beta2 = options.at("beta2");
  train.eps = options.at("eps");
  train.weight_decay = options.at("weight_decay");
  train.clip_norm = options.at("clip_norm");
  const double lr = options.at("lr");
  ParameterStore& store = here_.model().parameters();
  const train::AdamW optimizer(train, store);
  for (std::int64_t step = 1; step <= options.at("steps"); ++step) {
    ops::fill_zero(store.grads(), here_.ctx());
    here_.forward();
    here_.loss_and_backward();
    optimizer.update(store, lr, optimizer.grad_norm(store, here_.ctx()), step, here_.ctx());
  }
  std::set<std::string> unseen = golden_.names("after5.");
  for (std::size_t i = 0; i < store.rows().size(); ++i) {
    const std::string& name = store.rows()[i].name;
    if (unseen.erase(name) == 0) continue;
    EXPECT_TRUE(close_to(store.value(i), golden_.expected("after5." + name), kAfterFiveSteps)) << name;
  }
  EXPECT_TRUE(unseen.empty()) << "no weight here for " << *unseen.begin();
}

}  // namespace
}  // namespace switchyard::golden
