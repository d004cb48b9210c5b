#include "ops/adamw.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tensors.h"
#include "threads.h"

namespace switchyard::test {
namespace {

const ops::AdamWStep kFirst{
    .lr = 0.1, .beta1 = 0.9, .beta2 = 0.95, .eps = 0.125, .weight_decay = 0.1, .step = 1};

OwnedTensor scale(double factor) {
  OwnedTensor scale_1({1}, DType::f64);
  set(scale_1, 0, factor);
  return scale_1;
}

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
  ops::adamw_update(s.param, s.m, s.v, s.grad, scale(0.5), kFirst, {}, ctx);
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
  ops::adamw_update(s.param, s.m, s.v, s.grad, scale(0.5), kFirst, {}, ctx);
  EXPECT_NEAR(s.param[0], 2 - 0.1 * 0.1 * 2, 1e-15);
  EXPECT_EQ(s.m[0], 0);
  EXPECT_EQ(s.v[0], 0);
}

struct Reference {
  double param, m, v;
};

// The contract, one element at a time.
Reference update_one(Reference x, double g, const ops::AdamWStep& a) {
  const double t = static_cast<double>(a.step);
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
        ops::AdamWStep a{1e-2, 0.9, 0.95, 1e-8, 0.1, step};
        ops::adamw_update(s.param, s.m, s.v, s.grad, scale(0.7), a, {}, ctx);
        for (std::int64_t i = 0; i < count; ++i) {
          auto& x = reference[static_cast<std::size_t>(i)];
          x = update_one(x, 0.7 * s.grad[i], a);
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
  ops::AdamWStep late{0.5, 0.9, 0.95, 0.0, 0.0, 1000000};
  ops::adamw_update(s.param, s.m, s.v, s.grad, scale(1), late, {}, ctx);
  EXPECT_NEAR(s.param[0], 0.5, 1e-6);  // ten float roundings of numbers of at most one
}

// A gradient that is not finite has no factor, and changes nothing.
TEST(AdamW, UpdatesNothingWithoutAFactor) {
  Context ctx;
  const State s({3}, DType::f32);
  for (const Tensor& tensor : {s.param.view(), s.m.view(), s.v.view()}) fill(tensor, {1, 2, 3});
  fill(s.grad, {1, NAN, 1});
  ops::adamw_update(s.param, s.m, s.v, s.grad, scale(NAN), kFirst, {}, ctx);
  for (const Tensor& tensor : {s.param.view(), s.m.view(), s.v.view()})
    EXPECT_EQ(values(tensor), (std::vector<double>{1, 2, 3}));
}

TEST(AdamW, ClipsByTheNorm) {
  Context ctx;
  const auto factor = [&](double sum_of_squares, double clip_norm) {
    const OwnedTensor result({1}, DType::f64);
    ops::clip_factor(result, scale(sum_of_squares), clip_norm, ctx);
    return result[0];
  };
  EXPECT_EQ(factor(25, 1), 1 / (5 + 1e-6));
  EXPECT_EQ(factor(25, 6), 1);  // never scaled up
  EXPECT_EQ(factor(25, 0), 1);  // off
  EXPECT_TRUE(std::isnan(factor(INFINITY, 1)) && std::isnan(factor(NAN, 0)));
}

TEST(AdamW, SameBitsOnAnyThreadCount) {
  Context ctx;
  const ops::AdamWStep step{1e-3, 0.9, 0.95, 1e-8, 0.1, 7};
  expect_same_bits_on_any_thread_count([&] {
    State s({50001}, DType::f32);
    fill_normal(s.param, "param");
    fill_normal(s.m, "m");
    fill_normal(s.v, "v", 0.1, 1.0);
    fill_normal(s.grad, "grad");
    ops::adamw_update(s.param, s.m, s.v, s.grad, scale(0.7), step, {}, ctx);
    return std::move(s.param);
  });
}

TEST(AdamW, RefusesOtherShapesDtypesAndStepZero) {
  Context ctx;
  const State s({4, 2}, DType::f32);
  const OwnedTensor flat({8}, DType::f32), f64({4, 2}, DType::f64),
      strided = OwnedTensor::strided(4, 2, DType::f32);
  ops::AdamWStep step = kFirst;
  EXPECT_THROW(ops::adamw_update(s.param, s.m, s.v, flat, scale(1), step, {}, ctx), std::logic_error);
  EXPECT_THROW(ops::adamw_update(s.param, f64, s.v, s.grad, scale(1), step, {}, ctx), std::logic_error);
  EXPECT_THROW(ops::adamw_update(s.param, s.m, strided, s.grad, scale(1), step, {}, ctx), std::logic_error);
  step.step = 0;
  EXPECT_THROW(ops::adamw_update(s.param, s.m, s.v, s.grad, scale(1), step, {}, ctx), std::logic_error);
}

}  // namespace
}  // namespace switchyard::test
