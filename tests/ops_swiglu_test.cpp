#include "ops/swiglu.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

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

// Experts that have so many rows together, one of them none; behind them rows that belong to none.
struct ExpertSizes {
  std::int64_t routed, spare, width;
};
const ExpertSizes kExpertSizes[] = {{0, 3, 2}, {1, 0, 1}, {3, 2, 3}, {5, 1, 17}, {2, 4, 33}, {3, 1, 129}};

OwnedTensor offsets(std::int64_t n_routed) {
  return ints(
      {0, static_cast<double>(n_routed / 2), static_cast<double>(n_routed / 2), static_cast<double>(n_routed)});
}

// The tensors of one case. What rows beyond the experts' hold shows nowhere.
struct Experts {
  std::int64_t n_routed, n_rows;
  OwnedTensor offset, gate_up, weight, dout;

  Experts(const ExpertSizes& s, DType dtype, double scale = 1.0)
      : n_routed(s.routed),
        n_rows(s.routed + s.spare),
        offset(offsets(s.routed)),
        gate_up(normal_strided(n_rows, 2 * s.width, dtype, "gate_up", scale)),
        weight(normal({n_rows}, dtype, "weight")),
        dout(normal_strided(n_rows, s.width, dtype, "dout", 1.0, 2)) {}
  Tensor routed(const Tensor& rows) const { return rows.slice(0, n_routed); }
  Tensor spare(const Tensor& rows) const { return rows.slice(n_routed, n_rows - n_routed); }
  bool spare_is_nan(const Tensor& rows) const {
    return std::ranges::all_of(values(spare(rows)), [](double value) { return std::isnan(value); });
  }
};

TEST(ExpertSwiGlu, TwoRowsByHand) {
  Context ctx;
  OwnedTensor gate_up({3, 4}, DType::f64), dout({3, 2}, DType::f64), weight({3}, DType::f64);
  const OwnedTensor out({3, 2}, DType::f64), dgate_up({3, 4}, DType::f64), dweight({3}, DType::f64);
  const OwnedTensor offset = ints({0, 1, 2});
  const double l = std::log(3.0);
  fill(gate_up, {0, l, 5, 2, -l, 0, 4, -7, 1, 1, 1, 1});
  fill(dout, {1, 2, 1, 1, 1, 1});
  fill(weight, {10, 0, 1});
  ops::expert_swiglu_forward(out, gate_up, weight, offset, ctx);
  EXPECT_TRUE(all_near(values(out.view().slice(0, 2)), {0, 15 * l, 0, 0}, 1e-15, 0));
  ops::expert_swiglu_backward(dgate_up, dweight, dout, gate_up, weight, offset, ctx);
  EXPECT_TRUE(all_near(values(dgate_up.view().slice(0, 2)),
                       {25, 10 * 2 * 2 * 0.75 * (1 + l * 0.25), 0, 10 * 2 * 0.75 * l, 0, 0, 0, 0}, 1e-14, 0));
  // A weight of 0 has a gradient all the same.
  EXPECT_TRUE(all_near(values(dweight.view().slice(0, 2)), {2 * 1.5 * l, -l}, 1e-14, 0));
  EXPECT_TRUE(std::isnan(out[4]) && std::isnan(dgate_up[8]) && std::isnan(dweight[2]));
}

TEST(ExpertSwiGlu, GradientMatchesFiniteDifferences) {
  for (const ExpertSizes& s : kExpertSizes) {
    Context ctx;
    const Experts e(s, DType::f64);
    const OwnedTensor out = OwnedTensor::strided(e.n_rows, s.width, DType::f64, 1);
    const OwnedTensor dgate_up = OwnedTensor::strided(e.n_rows, 2 * s.width, DType::f64, 3);
    const OwnedTensor dweight({e.n_rows}, DType::f64);
    ops::expert_swiglu_backward(dgate_up, dweight, e.dout, e.gate_up, e.weight, e.offset, ctx);
    const auto loss = [&] {
      ops::expert_swiglu_forward(out, e.gate_up, e.weight, e.offset, ctx);
      return dot(e.routed(e.dout), e.routed(out));
    };
    if (s.routed > 0) {
      EXPECT_TRUE(gradient_matches(e.routed(e.gate_up), e.routed(dgate_up), loss)) << "width " << s.width;
      EXPECT_TRUE(gradient_matches(e.routed(e.weight), e.routed(dweight), loss)) << "width " << s.width;
    }
    EXPECT_TRUE(e.spare_is_nan(out) && e.spare_is_nan(dgate_up) && e.spare_is_nan(dweight));
    EXPECT_TRUE(out.margins_untouched() && dgate_up.margins_untouched());

    const OwnedTensor again({e.n_rows}, DType::f64);
    ops::expert_swiglu_backward(e.gate_up, again, e.dout, e.gate_up, e.weight, e.offset, ctx);
    EXPECT_TRUE(same_bits(e.routed(e.gate_up), e.routed(dgate_up)) &&
                same_bits(e.routed(again), e.routed(dweight)))
        << "in place, width " << s.width;
  }
}

// Once each: the same as without weights, bit for bit.
TEST(ExpertSwiGlu, WeightsOfOneChangeNothing) {
  for (const ExpertSizes& s : kExpertSizes) {
    Context ctx;
    const Experts e(s, DType::f32, 3.0);
    fill(e.weight, std::vector<double>(static_cast<std::size_t>(e.n_rows), 1.0));
    const OwnedTensor out({e.n_rows, s.width}, DType::f32), plain_out({e.n_rows, s.width}, DType::f32);
    const OwnedTensor dgate_up({e.n_rows, 2 * s.width}, DType::f32),
        plain_dgate_up({e.n_rows, 2 * s.width}, DType::f32), dweight({e.n_rows}, DType::f32);
    ops::swiglu_forward(plain_out, e.gate_up, ctx);
    ops::swiglu_backward(plain_dgate_up, e.dout, e.gate_up, ctx);
    ops::expert_swiglu_forward(out, e.gate_up, e.weight, e.offset, ctx);
    ops::expert_swiglu_backward(dgate_up, dweight, e.dout, e.gate_up, e.weight, e.offset, ctx);
    EXPECT_TRUE(same_bits(e.routed(out), e.routed(plain_out))) << "width " << s.width;
    EXPECT_TRUE(same_bits(e.routed(dgate_up), e.routed(plain_dgate_up))) << "width " << s.width;
  }
}

TEST(ExpertSwiGlu, FloatFollowsDouble) {
  for (const ExpertSizes& s : kExpertSizes) {
    const auto run = [&](DType dtype, bool magnitudes) {
      Context ctx;
      const Experts e(s, dtype, 3.0);
      const OwnedTensor out({e.n_rows, s.width}, dtype), dweight({e.n_rows}, dtype);
      if (magnitudes) {
        for (std::int64_t i = 0; i < e.dout.numel(); ++i) set(e.dout, i, std::abs(get(e.dout, i)));
        for (std::int64_t i = 0; i < e.gate_up.numel(); ++i) set(e.gate_up, i, std::abs(get(e.gate_up, i)));
      }
      ops::expert_swiglu_forward(out, e.gate_up, e.weight, e.offset, ctx);
      ops::expert_swiglu_backward(e.gate_up, dweight, e.dout, e.gate_up, e.weight, e.offset, ctx);
      return std::vector{values(e.routed(out)), values(e.routed(e.gate_up)), values(e.routed(dweight))};
    };
    const auto actual = run(DType::f32, false), exact = run(DType::f64, false), size = run(DType::f64, true);
    // As without weights, and one rounding more for the weight and for the product with it.
    EXPECT_TRUE(all_near(actual[0], exact[0], 1.4e-6, 0)) << "width " << s.width;
    EXPECT_TRUE(all_near(actual[1], exact[1], 1.4e-6, 1e-5)) << "width " << s.width;
    // A sum of `width` terms, each to 1.2e-6 and each partial sum rounded; with positive gates and ups their
    // sizes sum to no less.
    for (std::size_t r = 0; r < actual[2].size(); ++r)
      EXPECT_NEAR(actual[2][r], exact[2][r], (1.2e-6 + static_cast<double>(s.width) * 0x1p-24) * size[2][r]);
  }
}

TEST(ExpertSwiGlu, SameBitsOnAnyThreadCount) {
  Context ctx;
  const Experts e({190, 11, 129}, DType::f32);
  const auto backward = [&](bool weights) {
    OwnedTensor dgate_up({e.n_rows, 258}, DType::f32), dweight({e.n_rows}, DType::f32);
    ops::expert_swiglu_backward(dgate_up, dweight, e.dout, e.gate_up, e.weight, e.offset, ctx);
    return weights ? std::move(dweight) : std::move(dgate_up);
  };
  expect_same_bits_on_any_thread_count([&] {
    OwnedTensor out({e.n_rows, 129}, DType::f32);
    ops::expert_swiglu_forward(out, e.gate_up, e.weight, e.offset, ctx);
    return out;
  });
  expect_same_bits_on_any_thread_count([&] { return backward(true); });
  expect_same_bits_on_any_thread_count([&] { return backward(false); });
}

TEST(ExpertSwiGlu, RefusesOtherShapesAndDtypes) {
  Context ctx;
  const OwnedTensor out({2, 3}, DType::f32), gate_up({2, 6}, DType::f32), five({2, 5}, DType::f32);
  const OwnedTensor weight({2}, DType::f32), weight3({3}, DType::f32), weight64({2}, DType::f64);
  const OwnedTensor offset = ints({0, 2});
  EXPECT_THROW(ops::expert_swiglu_forward(out, five, weight, offset, ctx), std::logic_error);
  EXPECT_THROW(ops::expert_swiglu_forward(out, gate_up, weight3, offset, ctx), std::logic_error);
  EXPECT_THROW(ops::expert_swiglu_forward(out, gate_up, weight64, offset, ctx), std::logic_error);
  EXPECT_THROW(ops::expert_swiglu_forward(out, gate_up, weight, weight, ctx), std::logic_error);
  EXPECT_THROW(ops::expert_swiglu_backward(five, weight, out, gate_up, weight, offset, ctx), std::logic_error);
  EXPECT_THROW(ops::expert_swiglu_backward(gate_up, weight3, out, gate_up, weight, offset, ctx),
               std::logic_error);
}

}  // namespace
}  // namespace switchyard::test
