#include "ops/norm.h"

#include <gtest/gtest.h>

#include <cmath>

#include "gradient_check.h"
#include "tensors.h"
#include "threads.h"

namespace switchyard::test {
namespace {

constexpr double kEps = 1e-5;

TEST(RmsNorm, OneRowByHand) {
  Context ctx;
  OwnedTensor in({1, 2}, DType::f64), weight({2}, DType::f64), out({1, 2}, DType::f64),
      rstd({1, 1}, DType::f64);
  fill(in, {3, 4});
  fill(weight, {2, 0.5});
  ops::rmsnorm_forward(out, rstd, in, weight, 0.0, ctx);
  const double r = 1 / std::sqrt(12.5);  // the mean of 9 and 16
  EXPECT_TRUE(all_near(values(rstd), {r}, 1e-15, 0));
  EXPECT_TRUE(all_near(values(out), {6 * r, 2 * r}, 1e-15, 0));

  OwnedTensor dout({1, 2}, DType::f64), din({1, 2}, DType::f64), dweight({2}, DType::f64);
  fill(dout, {1, 0});
  fill(din, {10, 20});
  fill(dweight, {30, 40});
  ops::rmsnorm_backward(din, dweight, dout, in, rstd, weight, ctx);
  // g = (2, 0), x = (3r, 4r), mean(g x) = 3r: din = r (2 - 9 r^2, -12 r^2) = r (1.28, -0.96).
  EXPECT_TRUE(all_near(values(din), {10 + 1.28 * r, 20 - 0.96 * r}, 1e-14, 0));
  EXPECT_TRUE(all_near(values(dweight), {30 + 3 * r, 40}, 1e-14, 0));
}

TEST(RmsNorm, EpsIsInsideTheRoot) {
  Context ctx;
  const OwnedTensor in = normal({1, 3}, DType::f64, "in", 0.0), weight = normal({3}, DType::f64, "weight");
  const OwnedTensor out({1, 3}, DType::f64), rstd({1, 1}, DType::f64);
  ops::rmsnorm_forward(out, rstd, in, weight, 0.25, ctx);
  EXPECT_DOUBLE_EQ(rstd[0], 2.0);
  EXPECT_EQ(values(out), (std::vector<double>{0, 0, 0}));
}

struct Sizes {
  std::int64_t rows, groups, width;
};

// One forward and backward pass over strided matrices; the gradients are added to random values, which are then
// taken off again.
struct Pass {
  OwnedTensor in, weight, dout, out, rstd;
  std::vector<double> din, dweight;

  Pass(Sizes s, DType dtype, Context& ctx)
      : in(normal_strided(s.rows, s.groups * s.width, dtype, "in")),
        weight(normal({s.width}, dtype, "weight", 0.3, 1.0)),
        dout(normal_strided(s.rows, s.groups * s.width, dtype, "dout", 1.0, 3)),
        out(OwnedTensor::strided(s.rows, s.groups * s.width, dtype, 7)),
        rstd({s.rows, s.groups}, dtype) {
    ops::rmsnorm_forward(out, rstd, in, weight, kEps, ctx);
    const OwnedTensor din_tensor = normal_strided(s.rows, s.groups * s.width, dtype, "din", 1.0, 2);
    const OwnedTensor dweight_tensor = normal({s.width}, dtype, "dweight");
    const auto din_start = values(din_tensor), dweight_start = values(dweight_tensor);
    ops::rmsnorm_backward(din_tensor, dweight_tensor, dout, in, rstd, weight, ctx);
    din = difference(values(din_tensor), din_start);
    dweight = difference(values(dweight_tensor), dweight_start);
    EXPECT_TRUE(out.margins_untouched());
    EXPECT_TRUE(din_tensor.margins_untouched());
  }
};

const Sizes kSizes[] = {{1, 1, 1}, {3, 2, 3}, {5, 3, 17}, {33, 1, 33}, {40, 2, 129}};

TEST(RmsNorm, GradientMatchesFiniteDifferences) {
  for (const Sizes& s : kSizes) {
    Context ctx;
    ctx.scratch.set_poison(true);
    const Pass pass(s, DType::f64, ctx);
    const auto loss = [&] {
      ops::rmsnorm_forward(pass.out, pass.rstd, pass.in, pass.weight, kEps, ctx);
      return dot(pass.dout, pass.out);
    };
    // The loss is a sum of up to 10,000 terms of order one: its rounding, 2e-12, is divided by the step of
    // 1e-5. A row of one element has the third derivative eps / in^4, which is why the relative tolerance is
    // 1e-5.
    const GradientTolerance tolerance{.relative = 1e-5, .absolute = 2e-7, .max_elements = 300};
    EXPECT_TRUE(gradient_matches(pass.in, pass.din, loss, tolerance)) << "width " << s.width;
    EXPECT_TRUE(gradient_matches(pass.weight, pass.dweight, loss, tolerance)) << "width " << s.width;
  }
}

TEST(RmsNorm, FloatFollowsDouble) {
  for (const Sizes& s : kSizes) {
    Context ctx;
    ctx.scratch.set_poison(true);
    const Pass f32(s, DType::f32, ctx), f64(s, DType::f64, ctx);
    // Some ten roundings of 6e-8 an element; din subtracts terms of order one, then a start value is taken off.
    EXPECT_TRUE(all_near(values(f32.rstd), values(f64.rstd), 3e-7, 0)) << "width " << s.width;
    EXPECT_TRUE(all_near(values(f32.out), values(f64.out), 6e-7, 0)) << "width " << s.width;
    EXPECT_TRUE(all_near(f32.din, f64.din, 2e-6, 2e-6)) << "width " << s.width;
    // Sums of up to 80 terms of order one: sizes up to 30, each addition rounded to 6e-8 of that.
    EXPECT_TRUE(all_near(f32.dweight, f64.dweight, 0, 2e-5)) << "width " << s.width;
  }
}

// Every row's term is in dweight once, however the rows are cut into blocks.
TEST(RmsNorm, WeightGradientCountsEveryRowOnce) {
  Context ctx;
  ctx.scratch.set_poison(true);
  for (std::int64_t rows : {1, 31, 32, 33, 64, 8191, 8192, 8193, 9001}) {
    OwnedTensor in({rows, 2}, DType::f32), rstd({rows, 1}, DType::f32), dout({rows, 2}, DType::f32);
    OwnedTensor din = normal({rows, 2}, DType::f32, "din"), weight({2}, DType::f32), dweight({2}, DType::f32);
    for (std::int64_t i = 0; i < in.numel(); ++i) set(in, i, 1), set(dout, i, 1);
    for (std::int64_t t = 0; t < rows; ++t) set(rstd, t, 1);
    fill(weight, {1, 1});
    fill(dweight, {0.5, 0.5});
    ops::rmsnorm_backward(din, dweight, dout, in, rstd, weight, ctx);
    EXPECT_EQ(dweight[0], static_cast<double>(rows) + 0.5)
        << rows << " rows";  // exact: small integers and a half
    EXPECT_EQ(dweight[1], static_cast<double>(rows) + 0.5) << rows << " rows";
  }
}

TEST(RmsNorm, NormalisesInPlace) {
  Context ctx;
  const OwnedTensor in = normal({4, 34}, DType::f32, "in"), weight = normal({17}, DType::f32, "weight");
  const OwnedTensor out({4, 34}, DType::f32), rstd({4, 2}, DType::f32);
  ops::rmsnorm_forward(out, rstd, in, weight, kEps, ctx);
  ops::rmsnorm_forward(in, rstd, in, weight, kEps, ctx);
  EXPECT_TRUE(same_bits(in, out));
}

TEST(RmsNorm, SameBitsOnAnyThreadCount) {
  Context ctx;
  const OwnedTensor in = normal({201, 258}, DType::f32, "in"), weight = normal({129}, DType::f32, "weight");
  const OwnedTensor dout = normal({201, 258}, DType::f32, "dout");
  OwnedTensor rstd({201, 2}, DType::f32);
  const auto forward = [&] {
    OwnedTensor out({201, 258}, DType::f32);
    ops::rmsnorm_forward(out, rstd, in, weight, kEps, ctx);
    return out;
  };
  expect_same_bits_on_any_thread_count(forward);
  for (bool want_din : {true, false}) {
    expect_same_bits_on_any_thread_count([&] {
      OwnedTensor din = normal({201, 258}, DType::f32, "din"), dweight = normal({129}, DType::f32, "dweight");
      ops::rmsnorm_backward(din, dweight, dout, in, rstd, weight, ctx);
      return want_din ? std::move(din) : std::move(dweight);
    });
  }
}

TEST(RmsNorm, RefusesOtherShapesAndDtypes) {
  Context ctx;
  const OwnedTensor in({4, 6}, DType::f32), out({4, 6}, DType::f32), rstd({4, 2}, DType::f32),
      weight({3}, DType::f32);
  const OwnedTensor weight4({4}, DType::f32), rows3({3, 6}, DType::f32), rstd64({4, 2}, DType::f64);
  EXPECT_THROW(ops::rmsnorm_forward(out, rstd, in, weight4, kEps, ctx), std::logic_error);
  EXPECT_THROW(ops::rmsnorm_forward(rows3, rstd, in, weight, kEps, ctx), std::logic_error);
  EXPECT_THROW(ops::rmsnorm_forward(out, rstd64, in, weight, kEps, ctx), std::logic_error);
  EXPECT_THROW(ops::rmsnorm_backward(in, weight4, out, in, rstd, weight, ctx), std::logic_error);
}

}  // namespace
}  // namespace switchyard::test
