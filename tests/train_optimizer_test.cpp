#include "train/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "run_samples.h"
#include "tensors.h"

namespace switchyard::train {
namespace {

using namespace test;

using test::fill;
using test::get;
using test::values;
using Numbers = std::vector<double>;

// A matrix, a norm between two matrices, and gaps between all of them.
struct Store : ParameterStore {
  Store() {
    for (const bool norm : {false, true, false}) {
      begin_group();
      add({.name = "row" + std::to_string(rows().size()),
           .shape = norm ? Shape{3} : Shape{1, 2},
           .init = norm ? Init::ones : Init::normal,
           .weight_decay = !norm});
    }
    allocate(DType::f64, true);
  }
};

config::Train options() {
  config::Train train;
  train.beta1 = 0.9;
  train.beta2 = 0.95;
  train.eps = 1e-8;
  train.weight_decay = 0.1;
  train.clip_norm = 0;
  return train;
}

AdamW adamw(const config::Train& train, const ParameterStore& store) {
  return AdamW(train, store, parallel::lone_mesh(), 0, Device::cpu);
}

void update(const AdamW& optimizer, ParameterStore& store, const Tensor& squares, double lr, std::int64_t step,
            Context& ctx) {
  optimizer.measure(store, squares, ctx);
  optimizer.update(store, squares, lr, step, ctx);
}

TEST(AdamW, TwoStepsByHand) {
  Store store;
  Context ctx;
  const test::OwnedTensor squares({1}, DType::f64);
  const AdamW optimizer = adamw(options(), store);
  fill(store.value(0), {1, -2});
  fill(store.value(1), {1, 1, 1});
  fill(store.value(2), {0, 4});

  fill(store.grad(0), {0.5, 0});
  fill(store.grad(1), {0.5, -0.5, 0});
  fill(store.grad(2), {0, -2});
  update(optimizer, store, squares, 0.1, 1, ctx);
  // The first step moves by lr * sign(g), and decays by lr * 0.1 * p, save in the norm. eps = 1e-8 beside
  // |g| >= 0.5 takes at most 2e-9 from the step of 0.1.
  EXPECT_TRUE(test::all_near(values(store.value(0)), {1 - 0.1 - 0.01, -2 + 0.02}, 0, 3e-9));
  EXPECT_TRUE(test::all_near(values(store.value(1)), {0.9, 1.1, 1}, 0, 3e-9));
  EXPECT_TRUE(test::all_near(values(store.value(2)), {0, 4 + 0.1 - 0.04}, 0, 3e-9));
  EXPECT_TRUE(test::all_near(values(store.moment1(0)), {0.05, 0}, 1e-14, 0));
  EXPECT_TRUE(test::all_near(values(store.moment2(0)), {0.0125, 0}, 1e-14, 0));

  fill(store.grad(0), {-0.25, 0});
  update(optimizer, store, squares, 0.1, 2, ctx);
  // m = 0.9 * 0.05 - 0.1 * 0.25 = 0.02, over 1 - 0.9^2 = 0.19; v = 0.95 * 0.0125 + 0.05 * 0.0625 = 0.015, over
  // 1 - 0.95^2 = 0.0975; p = 0.89 - 0.1 * (0.1052632 / sqrt(0.1538462) + 0.089).
  EXPECT_TRUE(test::all_near(values(store.moment1(0)), {0.02, 0}, 1e-14, 0));
  EXPECT_TRUE(test::all_near(values(store.moment2(0)), {0.015, 0}, 1e-14, 0));
  EXPECT_NEAR(get(store.value(0), 0), 0.89 - 0.1 * (0.26836945 + 0.089), 1e-8);
}

TEST(AdamW, DecaysMatricesAndNothingElse) {
  Store store;
  Context ctx;
  const test::OwnedTensor squares({1}, DType::f64);
  for (std::size_t i = 0; i < 3; ++i)
    fill(store.value(i), Numbers(static_cast<std::size_t>(store.value(i).numel()), 2.0));
  update(adamw(options(), store), store, squares, 0.5, 1, ctx);
  EXPECT_TRUE(test::all_near(values(store.value(0)), Numbers(2, 2 * (1 - 0.5 * 0.1)), 1e-14, 0));
  EXPECT_EQ(values(store.value(1)), Numbers(3, 2.0));
  EXPECT_TRUE(test::all_near(values(store.value(2)), Numbers(2, 2 * (1 - 0.5 * 0.1)), 1e-14, 0));
}

TEST(AdamW, GapsBetweenRowsStayZero) {
  Store store;
  Context ctx;
  const test::OwnedTensor squares({1}, DType::f64);
  for (std::size_t i = 0; i < 3; ++i) {
    test::fill_normal(store.value(i), "value");
    test::fill_normal(store.grad(i), "grad");
  }
  update(adamw(options(), store), store, squares, 0.5, 1, ctx);
  double of_rows = 0, of_all = 0;
  for (std::size_t i = 0; i < 3; ++i) of_rows += test::dot(store.value(i), store.value(i));
  of_all = test::dot(store.values(), store.values());
  EXPECT_NEAR(of_all, of_rows, 1e-13);
}

// A router's bias: neither decayed nor moved, between two rows that are, whatever its gradient and moments
// hold.
TEST(AdamW, LeavesAloneWhatIsNotTrained) {
  ParameterStore store;
  for (const bool trained : {false, true, false, true, true, false}) {
    store.begin_group();
    store.add({.name = "row" + std::to_string(store.rows().size()), .shape = {3}, .trained = trained});
  }
  store.allocate(DType::f64, true);
  Context ctx;
  const test::OwnedTensor squares({1}, DType::f64);
  for (std::size_t i = 0; i < store.rows().size(); ++i) {
    fill(store.value(i), {1, 2, 3});
    fill(store.grad(i), {1, 1, 1});
  }
  update(adamw(options(), store), store, squares, 0.5, 1, ctx);
  for (std::size_t i = 0; i < store.rows().size(); ++i) {
    const bool trained = store.rows()[i].trained;
    EXPECT_EQ(values(store.value(i)) == (Numbers{1, 2, 3}), !trained) << i;
    EXPECT_EQ(values(store.moment1(i)) == (Numbers{0, 0, 0}), !trained) << i;
    EXPECT_EQ(values(store.moment2(i)) == (Numbers{0, 0, 0}), !trained) << i;
  }
}

TEST(AdamW, GivesTheSumOfSquaresOfTheWholeGradient) {
  Store store;
  Context ctx;
  const test::OwnedTensor squares({1}, DType::f64);
  fill(store.grad(0), {1, -2});
  fill(store.grad(1), {2, 4, 6});
  fill(store.grad(2), {8, -10});
  update(adamw(options(), store), store, squares, 0.1, 1, ctx);
  EXPECT_NEAR(squares[0], 15.0 * 15.0, 1e-12);
}

// The first moment after one step is (1 - beta1) times the gradient as it was used.
double used_gradient(double clip_norm) {
  Store store;
  Context ctx;
  const test::OwnedTensor squares({1}, DType::f64);
  config::Train train = options();
  train.clip_norm = clip_norm;
  fill(store.grad(0), {3, 4});
  update(adamw(train, store), store, squares, 0.1, 1, ctx);
  EXPECT_NEAR(get(store.moment1(0), 1) / get(store.moment1(0), 0), 4.0 / 3, 1e-14);
  return get(store.moment1(0), 0) / 0.1;
}

TEST(AdamW, ClipsAsTorchDoes) {
  EXPECT_NEAR(used_gradient(1), 3 / (5 + 1e-6), 1e-14);
  EXPECT_NEAR(used_gradient(5), 3 * 5 / (5 + 1e-6), 1e-14);  // at the very norm the 1e-6 still shows
  EXPECT_NEAR(used_gradient(5.1), 3, 1e-14);                 // never scaled up
  EXPECT_NEAR(used_gradient(0), 3, 1e-14);                   // off
}

}  // namespace
}  // namespace switchyard::train
