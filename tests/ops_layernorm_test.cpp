#include "ops/norm.h"

#include <gtest/gtest.h>

#include <cmath>

#include "gradient_check.h"
#include "poisoned_context.h"
#include "tensors.h"
#include "threads.h"

namespace switchyard::test {
namespace {

constexpr double kEps = 1e-5;

double silu(double x) { return x / (1 + std::exp(-x)); }

TEST(LayerNormSilu, OneRowByHand) {
  PoisonedContext ctx;
  OwnedTensor x({1, 2}, DType::f64), weight({2}, DType::f64), bias({2}, DType::f64);
  OwnedTensor out({1, 2}, DType::f64), mean({1}, DType::f64), rstd({1}, DType::f64);
  fill(x, {1, 5});  // mean 3, variance 4
  fill(weight, {2, 3});
  fill(bias, {0.5, -1});
  ops::layernorm_silu_forward(out, mean, rstd, x, weight, bias, 0.0, ctx);
  EXPECT_EQ(mean[0], 3);
  EXPECT_EQ(rstd[0], 0.5);
  EXPECT_TRUE(all_near(values(out), {silu(-1.5), silu(2)}, 1e-15, 0));
}

struct Sizes {
  std::int64_t rows, width;
};
const Sizes kSizes[] = {{1, 2}, {3, 5}, {33, 33}, {40, 129}};

// One forward and backward pass over strided rows; what the gradients held before is taken off again.
struct Pass {
  OwnedTensor x, weight, bias, dout, out, mean, rstd;
  std::vector<double> dx, dweight, dbias;

  Pass(Sizes s, DType dtype, Context& ctx)
      : x(normal_strided(s.rows, s.width, dtype, "x")),
        weight(normal({s.width}, dtype, "weight", 0.3, 1.0)),
        bias(normal({s.width}, dtype, "bias")),
        dout(normal_strided(s.rows, s.width, dtype, "dout", 1.0, 3)),
        out(OwnedTensor::strided(s.rows, s.width, dtype, 7)),
        mean({s.rows}, dtype),
        rstd({s.rows}, dtype) {
    ops::layernorm_silu_forward(out, mean, rstd, x, weight, bias, kEps, ctx);
    const OwnedTensor dx_tensor = normal_strided(s.rows, s.width, dtype, "dx", 1.0, 2);
    const OwnedTensor dw = normal({s.width}, dtype, "dw"), db = normal({s.width}, dtype, "db");
    const auto dx0 = values(dx_tensor), dw0 = values(dw), db0 = values(db);
    ops::layernorm_silu_backward(dx_tensor, dw, db, dout, x, mean, rstd, weight, bias, ctx);
    dx = difference(values(dx_tensor), dx0);
    dweight = difference(values(dw), dw0);
    dbias = difference(values(db), db0);
    EXPECT_TRUE(out.margins_untouched());
    EXPECT_TRUE(dx_tensor.margins_untouched());
  }
};

TEST(LayerNormSilu, GradientMatchesFiniteDifferences) {
  for (const Sizes& s : kSizes) {
    PoisonedContext ctx;
    const Pass pass(s, DType::f64, ctx);
    const auto loss = [&] {
      ops::layernorm_silu_forward(pass.out, pass.mean, pass.rstd, pass.x, pass.weight, pass.bias, kEps, ctx);
      return dot(pass.dout, pass.out);
    };
    // A sum of up to 5,000 terms of order one, rounded to 1e-12, divided by the step of 1e-5; two elements may
    // lie close together, which makes third derivatives large.
    const GradientTolerance tolerance{.relative = 1e-5, .absolute = 2e-7, .max_elements = 300};
    EXPECT_TRUE(gradient_matches(pass.x, pass.dx, loss, tolerance)) << "width " << s.width;
    EXPECT_TRUE(gradient_matches(pass.weight, pass.dweight, loss, tolerance)) << "width " << s.width;
    EXPECT_TRUE(gradient_matches(pass.bias, pass.dbias, loss, tolerance)) << "width " << s.width;
  }
}

TEST(LayerNormSilu, FloatFollowsDouble) {
  for (const Sizes& s : kSizes) {
    if (s.width < 5) continue;  // two elements that nearly agree are a division by almost nothing
    PoisonedContext ctx;
    const Pass f32(s, DType::f32, ctx), f64(s, DType::f64, ctx);
    // Some twenty roundings of 6e-8; sums over up to 40 rows of numbers up to ten.
    EXPECT_TRUE(all_near(values(f32.out), values(f64.out), 2e-6, 2e-6)) << "width " << s.width;
    EXPECT_TRUE(all_near(f32.dx, f64.dx, 5e-6, 5e-6)) << "width " << s.width;
    EXPECT_TRUE(all_near(f32.dweight, f64.dweight, 0, 3e-5)) << "width " << s.width;
    EXPECT_TRUE(all_near(f32.dbias, f64.dbias, 0, 3e-5)) << "width " << s.width;
  }
}

TEST(LayerNormSilu, SameBitsOnAnyThreadCount) {
  PoisonedContext ctx;
  const OwnedTensor x = normal({201, 129}, DType::f32, "x"), weight = normal({129}, DType::f32, "weight");
  const OwnedTensor bias = normal({129}, DType::f32, "bias"), dout = normal({201, 129}, DType::f32, "dout");
  const OwnedTensor out({201, 129}, DType::f32), mean({201}, DType::f32), rstd({201}, DType::f32);
  ops::layernorm_silu_forward(out, mean, rstd, x, weight, bias, kEps, ctx);
  expect_same_bits_on_any_thread_count([&] {
    OwnedTensor dx = normal({201, 129}, DType::f32, "dx"), dweight = normal({129}, DType::f32, "dw");
    const OwnedTensor dbias = normal({129}, DType::f32, "db");
    ops::layernorm_silu_backward(dx, dweight, dbias, dout, x, mean, rstd, weight, bias, ctx);
    return dweight;
  });
}

TEST(LayerNormSilu, RefusesOtherShapesAndDtypes) {
  Context ctx;
  const OwnedTensor x({4, 6}, DType::f32), out({4, 6}, DType::f32), per_row({4}, DType::f32),
      w({6}, DType::f32);
  const OwnedTensor w5({5}, DType::f32), w64({6}, DType::f64);
  EXPECT_THROW(ops::layernorm_silu_forward(out, per_row, per_row, x, w5, w, kEps, ctx), std::logic_error);
  EXPECT_THROW(ops::layernorm_silu_forward(out, per_row, per_row, x, w, w64, kEps, ctx), std::logic_error);
  EXPECT_THROW(ops::layernorm_silu_backward(x, w5, w, out, x, per_row, per_row, w, w, ctx), std::logic_error);
}

}  // namespace
}  // namespace switchyard::test
