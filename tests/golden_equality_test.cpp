// A model of this project against the same one in `transformers`. The lists of cases stand in
// golden_<layout>_test.cpp.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "config/layouts.h"
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
  const double mtp = golden_.mtp_loss_coef() * loss.mtp;
  EXPECT_NEAR(loss.cross_entropy + mtp + loss.balance, whole, 1e-5 * whole);
  // The balance loss alone: what is left of it after the subtraction carries the rounding of the whole.
  EXPECT_NEAR(loss.balance, whole - mtp - cross_entropy, 1e-6 * whole);
  ASSERT_EQ(golden_.has("mtp_loss"), here_.model().n_mtp_depths() > 0);
  if (golden_.has("mtp_loss")) {
    const double expected = golden_.expected("mtp_loss").values[0];
    EXPECT_NEAR(loss.mtp, expected, 1e-5 * expected);
  }
}

// A token's slots, (expert, weight) each. `any_order`: by expert.
std::vector<std::pair<double, double>> slots_of(const std::vector<double>& expert_TK,
                                                const std::vector<double>& weight_TK, std::int64_t n_slots,
                                                bool any_order) {
  std::vector<std::pair<double, double>> slots;
  for (std::size_t i = 0; i < expert_TK.size(); ++i) slots.emplace_back(expert_TK[i], weight_TK[i]);
  if (any_order)
    for (auto token = slots.begin(); token != slots.end(); token += n_slots) std::sort(token, token + n_slots);
  return slots;
}

TEST_P(Golden, EveryTokenGoesToTheSameExpertsWithTheSameWeights) {
  here_.forward();
  const std::vector<router::RoutingDecision> decision_L = here_.model().routing().decisions();
  ASSERT_EQ(decision_L.size(), golden_.names("experts.").size());
  // transformers does not sort what this layout's router chooses.
  const bool any_order = *here_.model().config().layout == config::kDeepseekV3;
  for (std::size_t l = 0; l < decision_L.size(); ++l) {
    const std::int64_t layer = here_.model().routing().layer(static_cast<std::int64_t>(l)).layer();
    SCOPED_TRACE("layer " + std::to_string(layer));
    const Expected expert_TK = golden_.expected("experts." + std::to_string(layer));
    const Expected weight_TK = golden_.expected("weights." + std::to_string(layer));
    ASSERT_EQ(dims(decision_L[l].expert_TK.shape()), expert_TK.shape);
    const auto actual = slots_of(test::values(decision_L[l].expert_TK), test::values(decision_L[l].weight_TK),
                                 expert_TK.shape[1], any_order);
    const auto expected = slots_of(expert_TK.values, weight_TK.values, expert_TK.shape[1], any_order);
    const double largest = *std::max_element(weight_TK.values.begin(), weight_TK.values.end());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      ASSERT_EQ(actual[i].first, expected[i].first) << "slot " << i;
      ASSERT_NEAR(actual[i].second, expected[i].second, kForward.of_largest * largest) << "slot " << i;
    }
  }
}

TEST_P(Golden, GradientsOfAllParametersAreEqual) {
  here_.forward();
  here_.loss_and_backward();
  const ParameterStore& store = here_.model().parameters();
  std::set<std::string> unseen = golden_.names("grad.");
  const std::vector<double> all = test::values(store.grads());
  const auto absolute = [](double a, double b) { return std::max(a, std::abs(b)); };
  const double largest = std::accumulate(all.begin(), all.end(), 0.0, absolute);
  for (std::size_t i = 0; i < store.rows().size(); ++i) {
    const std::string& name = store.rows()[i].name;
    if (unseen.erase(name) > 0) {
      EXPECT_TRUE(close_to(store.grad(i), golden_.expected("grad." + name), kGradient)) << name;
    } else if (store.rows()[i].trained) {
      // Zero by construction, so that rounding of terms as large as others' gradients is left.
      const std::vector<double> own = test::values(store.grad(i));
      EXPECT_LE(std::accumulate(own.begin(), own.end(), 0.0, absolute), 1e-6 * largest) << name;
    }
  }
  EXPECT_TRUE(unseen.empty()) << "no gradient here for " << *unseen.begin();
}

TEST_P(Golden, WeightsAreEqualAfterFiveSteps) {
  if (golden_.names("after5.").empty())
    GTEST_SKIP() << "a gradient is zero by construction, and AdamW makes steps of its rounding";
  const Json& options = golden_.optimizer();
  config::Train train;
  train.beta1 = options["beta1"].number();
  train.beta2 = options["beta2"].number();
  train.eps = options["eps"].number();
  train.weight_decay = options["weight_decay"].number();
  train.clip_norm = options["clip_norm"].number();
  const double lr = options["lr"].number();
  ParameterStore& store = here_.model().parameters();
  const train::AdamW optimizer(train, store, parallel::lone_mesh(), 0, Device::cpu);
  const test::OwnedTensor squares({1}, DType::f64);
  for (std::int64_t step = 1; step <= options["steps"].integer(); ++step) {
    ops::fill_zero(store.grads(), here_.ctx());
    here_.forward();
    here_.loss_and_backward();
    optimizer.measure(store, squares, here_.ctx());
    optimizer.update(store, squares, lr, step, here_.ctx());
  }
  for (std::size_t i = 0; i < store.rows().size(); ++i) {
    const Parameter& row = store.rows()[i];
    if (row.trained) continue;
    const checkpoint::StoredTensor& before = *golden_.weights().find(row.name);
    EXPECT_EQ(std::memcmp(store.value(i).raw(), before.bytes.data(), before.bytes.size()), 0) << row.name;
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
