#include "ops/swiglu.h"

#include <gtest/gtest.h>

#include <cmath>

#include "gradient_check.h"
#include "tensors.h"
#include "threads.h"

namespace switchyard::test {
namespace {

TEST(SwiGlu, TwoRowsByHand) {
  Context ctx;
  OwnedTensor gate_up({2, 4}, DType::f64), dout({2, 2}, DType::f64);
  const OwnedTensor out({2, 2}, DType::f64), dgate_up({2, 4}, DType::f64);
  fill(gate_up, {0, std::log(3.0), 5, 2,  //
                 -std::log(3.0), 0, 4, -7});
  ops::swiglu_forward(out, gate_up, ctx);
  // sigmoid is 1/2 at 0, 3/4 at ln 3, 1/4 at -ln 3.
  EXPECT_TRUE(all_near(values(out), {0, 1.5 * std::log(3.0), -std::log(3.0), 0}, 1e-15, 0));

  fill(dout, {1, 2, 1, 1});
  ops::swiglu_backward(dgate_up, dout, gate_up, ctx);
  const double l = std::log(3.0);
  EXPECT_TRUE(all_near(values(dgate_up),
                       {2.5, 2 * 2 * 0.75 * (1 + l * 0.25), 0, 2 * 0.75 * l,  //
                        4 * 0.25 * (1 - l * 0.75), -3.5, -0.25 * l, 0},
                       1e-14, 0));
}

TEST(SwiGlu, LargeGatesStayFinite) {
  Context ctx;
  OwnedTensor gate_up({1, 4}, DType::f32), dout({1, 2}, DType::f32);
  const OwnedTensor out({1, 2}, DType::f32);
  fill(gate_up, {200, -200, 3, 3});
  fill(dout, {1, 1});
  ops::swiglu_forward(out, gate_up, ctx);
  EXPECT_EQ(values(out), (std::vector<double>{600, 0}));
  ops::swiglu_backward(gate_up, dout, gate_up, ctx);
  EXPECT_EQ(values(gate_up), (std::vector<double>{3, 0, 200, 0}));
}

struct Sizes {
  std::int64_t rows, width;
};
const Sizes kSizes[] = {{1, 1}, {3, 3}, {5, 17}, {2, 33}, {3, 129}};

TEST(SwiGlu, GradientMatchesFiniteDifferences) {
  for (const Sizes& s : kSizes) {
    Context ctx;
    const OwnedTensor gate_up = normal_strided(s.rows, 2 * s.width, DType::f64, "gate_up");
    const OwnedTensor dout = normal_strided(s.rows, s.width, DType::f64, "dout", 1.0, 2);
    const OwnedTensor out = OwnedTensor::strided(s.rows, s.width, DType::f64, 1);
    const OwnedTensor dgate_up = OwnedTensor::strided(s.rows, 2 * s.width, DType::f64, 3);  // NaN until set
    ops::swiglu_backward(dgate_up, dout, gate_up, ctx);
    const auto loss = [&] {
      ops::swiglu_forward(out, gate_up, ctx);
      return dot(dout, out);
    };
    EXPECT_TRUE(gradient_matches(gate_up, dgate_up, loss)) << "width " << s.width;
    EXPECT_TRUE(out.margins_untouched());
    EXPECT_TRUE(dgate_up.margins_untouched());
  }
}

TEST(SwiGlu, FloatFollowsDouble) {
  for (const Sizes& s : kSizes) {
    Context ctx;
    std::vector<std::vector<double>> out_values, dgate_up_values;
    for (DType dtype : {DType::f32, DType::f64}) {
      const OwnedTensor gate_up = normal_strided(s.rows, 2 * s.width, dtype, "gate_up", 3.0);
      const OwnedTensor dout = normal({s.rows, s.width}, dtype, "dout"), out({s.rows, s.width}, dtype);
      ops::swiglu_forward(out, gate_up, ctx);
      ops::swiglu_backward(gate_up, dout, gate_up, ctx);  // in place
      out_values.push_back(values(out));
      dgate_up_values.push_back(values(gate_up));
    }
    // Sigmoid to 3e-7 and four roundings of 6e-8; the rounding of a gate of 10 moves its sigmoid by 5e-7.
    EXPECT_TRUE(all_near(out_values[0], out_values[1], 1.2e-6, 0)) << "width " << s.width;
    // 1 + g (1 - sigmoid) cancels near g = -1.28: absolute, on numbers of up to about 10.
    EXPECT_TRUE(all_near(dgate_up_values[0], dgate_up_values[1], 1.2e-6, 4e-6)) << "width " << s.width;
  }
}

TEST(SwiGlu, SameBitsOnAnyThreadCount) {
  Context ctx;
  const OwnedTensor gate_up = normal({201, 258}, DType::f32, "gate_up"),
                    dout = normal({201, 129}, DType::f32, "dout");
  expect_same_bits_on_any_thread_count([&] {
    OwnedTensor out({201, 129}, DType::f32);
    ops::swiglu_forward(out, gate_up, ctx);
    return out;
  });
  expect_same_bits_on_any_thread_count([&] {
    OwnedTensor dgate_up({201, 258}, DType::f32);
    ops::swiglu_backward(dgate_up, dout, gate_up, ctx);
    return dgate_up;
  });
}

TEST(SwiGlu, RefusesOtherShapesAndDtypes) {
  Context ctx;
  const OwnedTensor out({2, 3}, DType::f32), gate_up({2, 6}, DType::f32), five({2, 5}, DType::f32);
  const OwnedTensor rows3({3, 6}, DType::f32), gate_up64({2, 6}, DType::f64), integers({2, 3}, DType::i32);
  EXPECT_THROW(ops::swiglu_forward(out, five, ctx), std::logic_error);
  EXPECT_THROW(ops::swiglu_forward(out, rows3, ctx), std::logic_error);
  EXPECT_THROW(ops::swiglu_forward(out, gate_up64, ctx), std::logic_error);
  EXPECT_THROW(ops::swiglu_backward(five, out, gate_up, ctx), std::logic_error);
  EXPECT_THROW(ops::swiglu_forward(integers, OwnedTensor({2, 6}, DType::i32), ctx), std::logic_error);
}

}  // namespace
}  // namespace switchyard::test
