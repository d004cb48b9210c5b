#include "ops/adamw.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tensors.h"
#include "threads.h"

namespace switchyard::test {
namespace {

const ops::AdamWStep kFirst{
    .lr = 0.1, .beta1 = 0.9, .beta2 = 0.95, .eps = 0.125, .weight_decay = 0.1, .grad_scale = 0.5, .step = 1};

struct State {
  OwnedTensor param, m, v, grad;
  State(Shape shape, DType dtype) : param(shape, dtype), m(shape, dtype), v(shape, dtype), grad(shape, dtype) {}
};

TEST(AdamW, FirstStepByHand) {
  Context ctx;
  const State s({1}, DType::f64);
  fill(s.param, {1});
  fill(s.m, {0});
  fill(s.v, {0});
  fill(s.grad, {-1});
  ops::adamw_update(s.param, s.m, s.v, s.grad, kFirst, ctx);
  // g = -1/2; both corrected moments are those of g: update = -0.5 / (0.5 + 0.125) = -0.8, decay 0.1.
  EXPECT_NEAR(s.m[0], -0.05, 1e-15);
  EXPECT_NEAR(s.v[0], 0.0125, 1e-15);
  EXPECT_NEAR(s.param[0], 1 - 0.1 * (-0.8 + 0.1), 1e-14);
  EXPECT_EQ(s.grad[0], -1);
}

// The decay does not pass through the moments: with no gradient it alone moves the weight.
TEST(AdamW, WeightDecayIsDecoupled) {
  Context ctx;
  const State s({1}, DType::f64);
  fill(s.param, {2});
  fill(s.m, {0});
  fill(s.v, {0});
  fill(s.grad, {0});
  ops::adamw_update(s.param, s.m, s.v, s.grad, kFirst, ctx);
  EXPECT_NEAR(s.param[0], 2 - 0.1 * 0.1 * 2, 1e-15);
  EXPECT_EQ(s.m[0], 0);
  EXPECT_EQ(s.v[0], 0);
}

struct Reference {
  double param, m, v;
};

// The contract, one element at a time.
Reference update_one(Reference x, double grad, const ops::AdamWStep& a) {
  const double g = a.grad_scale * grad, t = static_cast<double>(a.step);
  x.m = a.beta1 * x.m + (1 - a.beta1) * g;
  x.v = a.beta2 * x.v + (1 - a.beta2) * g * g;
  const double m_hat = x.m / (1 - std::pow(a.beta1, t)), v_hat = x.v / (1 - std::pow(a.beta2, t));
  x.param -= a.lr * (m_hat / (std::sqrt(v_hat) + a.eps) + a.weight_decay * x.param);
  return x;
}

TEST(AdamW, FollowsTheFormulaOverThreeSteps) {
  Context ctx;
  for (DType dtype : {DType::f32, DType::f64}) {
    // Per step some ten roundings (6e-8 in float) on numbers of order one; the update has size lr * 1.
    const double relative = dtype == DType::f32 ? 1e-6 : 1e-14, absolute = relative;
    for (std::int64_t count : {1, 3, 17, 129, 8193, 20001}) {
      const State s({count}, dtype);
      fill_normal(s.param, "param");
      for (std::int64_t i = 0; i < count; ++i) set(s.m, i, 0), set(s.v, i, 0);
      std::vector<Reference> reference;
      for (std::int64_t i = 0; i < count; ++i) reference.push_back({s.param[i], 0, 0});
      for (std::int64_t step = 1; step <= 3; ++step) {
        fill_normal(s.grad, "grad" + std::to_string(step));
        ops::AdamWStep a{1e-2, 0.9, 0.95, 1e-8, 0.1, 0.7, step};
        ops::adamw_update(s.param, s.m, s.v, s.grad, a, ctx);
        for (std::int64_t i = 0; i < count; ++i) {
          auto& x = reference[static_cast<std::size_t>(i)];
          x = update_one(x, s.grad[i], a);
        }
      }
      std::vector<double> param, m, v;
      for (const Reference& x : reference) param.push_back(x.param), m.push_back(x.m), v.push_back(x.v);
      EXPECT_TRUE(all_near(values(s.param), param, relative, absolute)) << count;
      EXPECT_TRUE(all_near(values(s.m), m, relative, absolute)) << count;
      EXPECT_TRUE(all_near(values(s.v), v, relative, absolute)) << count;
    }
  }
}

TEST(AdamW, LateStepsNeedNoCorrection) {
  Context ctx;
  const State s({1}, DType::f32);
  fill(s.param, {1});
  fill(s.m, {0.5});
  fill(s.v, {0.25});
  fill(s.grad, {0.5});
  ops::AdamWStep late{0.5, 0.9, 0.95, 0.0, 0.0, 1.0, 1000000};
  ops::adamw_update(s.param, s.m, s.v, s.grad, late, ctx);
  EXPECT_NEAR(s.param[0], 0.5, 1e-6);  // ten float roundings of numbers of at most one
}

TEST(AdamW, SameBitsOnAnyThreadCount) {
  Context ctx;
  const ops::AdamWStep step{1e-3, 0.9, 0.95, 1e-8, 0.1, 0.7, 7};
  expect_same_bits_on_any_thread_count([&] {
    State s({50001}, DType::f32);
    fill_normal(s.param, "param");
    fill_normal(s.m, "m");
    fill_normal(s.v, "v", 0.1, 1.0);
    fill_normal(s.grad, "grad");
    ops::adamw_update(s.param, s.m, s.v, s.grad, step, ctx);
    return std::move(s.param);
  });
}

TEST(AdamW, RefusesOtherShapesDtypesAndStepZero) {
  Context ctx;
  const State s({4, 2}, DType::f32);
  const OwnedTensor flat({8}, DType::f32), f64({4, 2}, DType::f64),
      strided = OwnedTensor::strided(4, 2, DType::f32);
  ops::AdamWStep step = kFirst;
  EXPECT_THROW(ops::adamw_update(s.param, s.m, s.v, flat, step, ctx), std::logic_error);
  EXPECT_THROW(ops::adamw_update(s.param, f64, s.v, s.grad, step, ctx), std::logic_error);
  EXPECT_THROW(ops::adamw_update(s.param, s.m, strided, s.grad, step, ctx), std::logic_error);
  step.step = 0;
  EXPECT_THROW(ops::adamw_update(s.param, s.m, s.v, s.grad, step, ctx), std::logic_error);
}

}  // namespace
}  // namespace switchyard::test
