#include "ops/elementwise.h"

#include <gtest/gtest.h>

#include <cmath>

#include "gradient_check.h"
#include "poisoned_context.h"
#include "rounding_bound.h"
#include "tensors.h"
#include "threads.h"

namespace switchyard::test {
namespace {

struct Sizes {
  std::int64_t rows, width;
};
const Sizes kSizes[] = {{1, 1}, {3, 5}, {17, 33}, {257, 65}, {1025, 17}};

TEST(Bias, TwoRowsByHand) {
  for (const DType dtype : {DType::f32, DType::f64}) {
    PoisonedContext ctx;
    OwnedTensor out({2, 3}, dtype), bias({3}, dtype), dbias({3}, dtype);
    fill(out, {1, 2, 3, 4, 5, 6});
    fill(bias, {10, 0, -1});
    fill(dbias, {100, 200, 300});
    ops::bias_forward(out, bias, ctx);
    EXPECT_EQ(values(out), (std::vector<double>{11, 2, 2, 14, 5, 5}));
    ops::bias_backward(dbias, out, ctx);
    EXPECT_EQ(values(dbias), (std::vector<double>{125, 207, 307}));
  }
}

// Rows are a column range of a wider matrix, as a gradient of queries may be.
TEST(Bias, GradientMatchesFiniteDifferences) {
  for (const Sizes& s : kSizes) {
    PoisonedContext ctx;
    const OwnedTensor x = normal_strided(s.rows, s.width, DType::f64, "x");
    const OwnedTensor dout = normal_strided(s.rows, s.width, DType::f64, "dout", 1.0, 2);
    const OwnedTensor bias = normal({s.width}, DType::f64, "bias");
    const OwnedTensor dbias = normal({s.width}, DType::f64, "dbias before");
    const std::vector<double> before = values(dbias);
    ops::bias_backward(dbias, dout, ctx);
    const auto loss = [&] {
      const OwnedTensor out = OwnedTensor::strided(s.rows, s.width, DType::f64, 1);
      for (std::int64_t i = 0; i < x.numel(); ++i) set(out, i, x[i]);
      ops::bias_forward(out, bias, ctx);
      EXPECT_TRUE(out.margins_untouched());
      return dot(dout, out);
    };
    // Up to 17,000 terms of order one in the loss: its rounding, 3e-12, over the step of 1e-5.
    EXPECT_TRUE(
        gradient_matches(bias, difference(values(dbias), before), loss, {.absolute = 3e-6, .max_elements = 20}))
        << s.rows << " x " << s.width;
  }
}

TEST(Bias, FloatSumsAreWithinRounding) {
  for (const Sizes& s : kSizes) {
    PoisonedContext ctx;
    const OwnedTensor dout = normal({s.rows, s.width}, DType::f32, "dout"), dbias({s.width}, DType::f32);
    std::vector<double> exact(static_cast<std::size_t>(s.width), 0.0), magnitude(exact);
    for (std::int64_t i = 0; i < dout.numel(); ++i) {
      exact[static_cast<std::size_t>(i % s.width)] += dout[i];
      magnitude[static_cast<std::size_t>(i % s.width)] += std::abs(dout[i]);
    }
    fill(dbias, std::vector<double>(static_cast<std::size_t>(s.width), 0.0));
    ops::bias_backward(dbias, dout, ctx);
    EXPECT_TRUE(within_rounding(values(dbias), exact, magnitude, s.rows)) << s.rows << " x " << s.width;
  }
}

TEST(Bias, SameBitsOnAnyThreadCount) {
  PoisonedContext ctx;
  const OwnedTensor dout = normal({1025, 33}, DType::f32, "dout"), bias = normal({33}, DType::f32, "bias");
  expect_same_bits_on_any_thread_count([&] {
    OwnedTensor dbias = normal({33}, DType::f32, "dbias");
    ops::bias_backward(dbias, dout, ctx);
    return dbias;
  });
  expect_same_bits_on_any_thread_count([&] {
    OwnedTensor out = normal({1025, 33}, DType::f32, "out");
    ops::bias_forward(out, bias, ctx);
    return out;
  });
}

TEST(Bias, RefusesOtherShapesAndDtypes) {
  PoisonedContext ctx;
  const OwnedTensor out({2, 3}, DType::f32), bias4({4}, DType::f32), bias64({3}, DType::f64);
  const OwnedTensor matrix({3, 3}, DType::f32);
  for (const OwnedTensor* bias : {&bias4, &bias64, &matrix}) {
    EXPECT_THROW(ops::bias_forward(out, *bias, ctx), std::logic_error);
    EXPECT_THROW(ops::bias_backward(*bias, out, ctx), std::logic_error);
  }
}

}  // namespace
}  // namespace switchyard::test
