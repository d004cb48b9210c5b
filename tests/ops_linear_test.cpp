#include "ops/linear.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "gradient_check.h"
#include "ops/swiglu.h"
#include "poisoned_context.h"
#include "rounding_bound.h"
#include "tensors.h"
#include "threads.h"

namespace switchyard::test {
namespace {

using ops::Write;

TEST(Linear, TwoRowsByHand) {
  for (DType dtype : {DType::f32, DType::f64}) {  // small integers: exact in both
    PoisonedContext ctx;
    OwnedTensor in({2, 3}, dtype), weight({2, 3}, dtype), dout({2, 2}, dtype);
    const OwnedTensor out({2, 2}, dtype), din({2, 3}, dtype), dweight({2, 3}, dtype);
    fill(in, {1, 2, 3, 4, 5, 6});
    fill(weight, {1, 0, -1, 2, 1, 0});
    fill(dout, {1, -1, 2, 0});
    ops::linear_forward(out, in, weight, Write::set, ctx);
    EXPECT_EQ(values(out), (std::vector<double>{-2, 4, -2, 13}));
    fill(out, {10, 20, 30, 40});
    ops::linear_forward(out, in, weight, Write::add, ctx);
    EXPECT_EQ(values(out), (std::vector<double>{8, 24, 28, 53}));

    ops::linear_backward_input(din, dout, weight, Write::set, ctx);
    EXPECT_EQ(values(din), (std::vector<double>{-1, -1, -1, 2, 0, -2}));
    fill(din, {1, 1, 1, 1, 1, 1});
    ops::linear_backward_input(din, dout, weight, Write::add, ctx);
    EXPECT_EQ(values(din), (std::vector<double>{0, 0, 0, 3, 1, -1}));

    fill(dweight, {100, 0, 0, 0, 0, 200});
    ops::linear_backward_weight(dweight, dout, in, ctx);
    EXPECT_EQ(values(dweight), (std::vector<double>{109, 12, 15, -1, -2, 197}));
  }
}

TEST(Linear, EmptySums) {
  for (DType dtype : {DType::f32, DType::f64}) {
    PoisonedContext ctx;
    const OwnedTensor weight = normal({4, 3}, dtype, "weight"), no_in({0, 3}, dtype), no_out({0, 4}, dtype);
    ops::linear_forward(no_out, no_in, weight, Write::set, ctx);
    ops::linear_backward_input(no_in, no_out, weight, Write::set, ctx);
    // A gradient of no rows is what it was before.
    const OwnedTensor dweight = normal({4, 3}, dtype, "dweight"), before = normal({4, 3}, dtype, "dweight");
    ops::linear_backward_weight(dweight, no_out, no_in, ctx);
    EXPECT_TRUE(same_bits(dweight, before));
    // Without inputs or outputs what is set is zero, and what is added is nothing.
    const OwnedTensor in({2, 0}, dtype), narrow({4, 0}, dtype), out({2, 4}, dtype);
    ops::linear_forward(out, in, narrow, Write::set, ctx);
    EXPECT_EQ(values(out), std::vector<double>(8, 0.0));
    fill_normal(out, "out");
    ops::linear_forward(out, in, narrow, Write::add, ctx);
    EXPECT_TRUE(same_bits(out, normal({2, 4}, dtype, "out")));
  }
}

struct Sizes {
  std::int64_t rows, inputs, outputs;
};
const Sizes kSizes[] = {{1, 1, 1}, {3, 5, 2}, {17, 33, 3}, {65, 3, 17}, {129, 17, 5}, {257, 7, 130}};

TEST(Linear, GradientsMatchFiniteDifferences) {
  for (const Sizes& s : kSizes) {
    PoisonedContext ctx;
    const OwnedTensor in = normal_strided(s.rows, s.inputs, DType::f64, "in");
    const OwnedTensor weight = normal_strided(s.outputs, s.inputs, DType::f64, "weight", 1.0, 3);
    const OwnedTensor dout = normal_strided(s.rows, s.outputs, DType::f64, "dout", 1.0, 2);
    const OwnedTensor out = OwnedTensor::strided(s.rows, s.outputs, DType::f64, 1);
    const auto loss = [&] {
      ops::linear_forward(out, in, weight, Write::set, ctx);
      return dot(dout, out);
    };
    // The loss sums up to rows * outputs * inputs products of order one: its rounding, 1e-16 of their root sum
    // of squares (500 at most) over a step of 1e-5, is 5e-9 at most and mostly far less.
    const GradientTolerance tolerance{.absolute = 3e-8, .max_elements = 20};
    const OwnedTensor din = OwnedTensor::strided(s.rows, s.inputs, DType::f64, 4);  // NaN until set
    ops::linear_backward_input(din, dout, weight, Write::set, ctx);
    EXPECT_TRUE(gradient_matches(in, din, loss, tolerance)) << s.rows << " rows";
    EXPECT_TRUE(din.margins_untouched());

    const OwnedTensor dweight = normal_strided(s.outputs, s.inputs, DType::f64, "dweight", 1.0, 2);
    const std::vector<double> before = values(dweight);
    ops::linear_backward_weight(dweight, dout, in, ctx);
    EXPECT_TRUE(gradient_matches(weight, difference(values(dweight), before), loss, tolerance))
        << s.rows << " rows";
    EXPECT_TRUE(dweight.margins_untouched());
    EXPECT_TRUE(out.margins_untouched());
  }
}

TEST(Linear, AddIsSetPlusWhatWasThere) {
  for (const Sizes& s : kSizes) {
    PoisonedContext ctx;
    const OwnedTensor in = normal_strided(s.rows, s.inputs, DType::f64, "in");
    const OwnedTensor weight = normal({s.outputs, s.inputs}, DType::f64, "weight");
    const OwnedTensor dout = normal_strided(s.rows, s.outputs, DType::f64, "dout");
    const OwnedTensor out_set = OwnedTensor::strided(s.rows, s.outputs, DType::f64);
    const OwnedTensor out_add = normal_strided(s.rows, s.outputs, DType::f64, "out");
    const std::vector<double> out_before = values(out_add);
    ops::linear_forward(out_set, in, weight, Write::set, ctx);
    ops::linear_forward(out_add, in, weight, Write::add, ctx);
    // Roundings of sums below 100: 1.5e-14 each.
    EXPECT_TRUE(all_near(difference(values(out_add), out_before), values(out_set), 0, 1e-13));

    const OwnedTensor din_set = OwnedTensor::strided(s.rows, s.inputs, DType::f64);
    const OwnedTensor din_add = normal_strided(s.rows, s.inputs, DType::f64, "din");
    const std::vector<double> din_before = values(din_add);
    ops::linear_backward_input(din_set, dout, weight, Write::set, ctx);
    ops::linear_backward_input(din_add, dout, weight, Write::add, ctx);
    EXPECT_TRUE(all_near(difference(values(din_add), din_before), values(din_set), 0, 1e-13));
    EXPECT_TRUE(out_add.margins_untouched() && din_add.margins_untouched());
  }
}

TEST(Linear, FloatFollowsDouble) {
  for (const Sizes& s : kSizes) {
    PoisonedContext ctx;
    const auto run = [&](DType dtype, bool magnitudes) {
      OwnedTensor in = normal_strided(s.rows, s.inputs, dtype, "in");
      OwnedTensor weight = normal_strided(s.outputs, s.inputs, dtype, "weight", 1.0, 3);
      OwnedTensor dout = normal_strided(s.rows, s.outputs, dtype, "dout", 1.0, 2);
      if (magnitudes) in = absolute(in), weight = absolute(weight), dout = absolute(dout);
      const OwnedTensor out = OwnedTensor::strided(s.rows, s.outputs, dtype, 1);
      const OwnedTensor din = OwnedTensor::strided(s.rows, s.inputs, dtype, 1),
                        dweight({s.outputs, s.inputs}, dtype);
      fill(dweight, std::vector<double>(static_cast<std::size_t>(dweight.numel()), 0.0));
      ops::linear_forward(out, in, weight, Write::set, ctx);
      ops::linear_backward_input(din, dout, weight, Write::set, ctx);
      ops::linear_backward_weight(dweight, dout, in, ctx);
      EXPECT_TRUE(out.margins_untouched() && din.margins_untouched());
      return std::vector{values(out), values(din), values(dweight)};
    };
    const auto actual = run(DType::f32, false), exact = run(DType::f64, false),
               magnitude = run(DType::f64, true);
    EXPECT_TRUE(within_rounding(actual[0], exact[0], magnitude[0], s.inputs)) << s.rows << " rows, forward";
    EXPECT_TRUE(within_rounding(actual[1], exact[1], magnitude[1], s.outputs)) << s.rows << " rows, din";
    EXPECT_TRUE(within_rounding(actual[2], exact[2], magnitude[2], s.rows + 1)) << s.rows << " rows, dweight";
  }
}

TEST(Linear, SameBitsTwiceOnTheSameThreads) {
  PoisonedContext ctx;
  const OwnedTensor in = normal({257, 130}, DType::f32, "in"),
                    weight = normal({129, 130}, DType::f32, "weight");
  const OwnedTensor dout = normal({257, 129}, DType::f32, "dout");
  const auto forward = [&] {
    OwnedTensor out({257, 129}, DType::f32);
    ops::linear_forward(out, in, weight, Write::set, ctx);
    return out;
  };
  const auto backward_input = [&] {
    OwnedTensor din = normal({257, 130}, DType::f32, "din");
    ops::linear_backward_input(din, dout, weight, Write::add, ctx);
    return din;
  };
  const auto backward_weight = [&] {
    OwnedTensor dweight = normal({129, 130}, DType::f32, "dweight");
    ops::linear_backward_weight(dweight, dout, in, ctx);
    return dweight;
  };
  for (int threads : {1, 2, 3}) {
    EXPECT_TRUE(same_bits(with_threads(threads, forward), with_threads(threads, forward))) << threads;
    EXPECT_TRUE(same_bits(with_threads(threads, backward_input), with_threads(threads, backward_input)))
        << threads;
    EXPECT_TRUE(same_bits(with_threads(threads, backward_weight), with_threads(threads, backward_weight)))
        << threads;
  }
}

TEST(Linear, RefusesOtherShapesAndDtypes) {
  PoisonedContext ctx;
  const OwnedTensor in({2, 3}, DType::f32), weight({4, 3}, DType::f32), out({2, 4}, DType::f32);
  const OwnedTensor wide({4, 5}, DType::f32), out3({3, 4}, DType::f32), weight64({4, 3}, DType::f64);
  EXPECT_THROW(ops::linear_forward(out, in, wide, Write::set, ctx), std::logic_error);
  EXPECT_THROW(ops::linear_forward(out3, in, weight, Write::set, ctx), std::logic_error);
  EXPECT_THROW(ops::linear_forward(out, in, weight64, Write::set, ctx), std::logic_error);
  EXPECT_THROW(ops::linear_backward_input(in, out3, weight, Write::set, ctx), std::logic_error);
  EXPECT_THROW(ops::linear_backward_input(in, out, wide, Write::set, ctx), std::logic_error);
  EXPECT_THROW(ops::linear_backward_weight(wide, out, in, ctx), std::logic_error);
  EXPECT_THROW(ops::linear_backward_weight(weight, out3, in, ctx), std::logic_error);
}

// Rows of the experts one after another, as offset_Ep.
OwnedTensor offsets(const std::vector<std::int64_t>& counts) {
  std::vector<double> offset{0};
  for (std::int64_t count : counts) offset.push_back(offset.back() + static_cast<double>(count));
  return ints(offset);
}

// Expert e's matrix of a contiguous [E, N, K] tensor.
Tensor expert_matrix(const Tensor& weight_ENK, std::int64_t e) {
  return weight_ENK.slice(e, 1).reshape({weight_ENK.dim(1), weight_ENK.dim(2)});
}

TEST(Linear, AddsToAnotherTensor) {
  for (DType dtype : {DType::f32, DType::f64}) {
    PoisonedContext ctx;
    const OwnedTensor in = normal_strided(5, 17, dtype, "in"), weight = normal({9, 17}, dtype, "weight");
    const OwnedTensor addend = normal_strided(5, 9, dtype, "addend", 1.0, 2),
                      out = OwnedTensor::strided(5, 9, dtype, 3);
    const std::vector<double> before = values(addend);
    ops::linear_forward_add(out, addend, in, weight, ctx);
    EXPECT_EQ(values(addend), before);
    EXPECT_TRUE(out.margins_untouched());
    ops::linear_forward_add(addend, addend, in, weight, ctx);
    EXPECT_TRUE(same_bits(addend, out)) << "in place";
    EXPECT_TRUE(addend.margins_untouched());
    const OwnedTensor other({5, 8}, dtype), integers({5, 9}, DType::i32);
    EXPECT_THROW(ops::linear_forward_add(out, other, in, weight, ctx), std::logic_error);
    EXPECT_THROW(ops::linear_forward_add(out, integers, in, weight, ctx), std::logic_error);
    EXPECT_THROW(ops::linear_forward_add(other, other, in, weight, ctx), std::logic_error);
  }
}

TEST(GroupedLinear, ThreeExpertsByHand) {
  for (DType dtype : {DType::f32, DType::f64}) {  // small integers: exact in both
    PoisonedContext ctx;
    const OwnedTensor offset = ints({0, 2, 2, 3});  // expert 1 has no rows, row 3 no expert
    const OwnedTensor in({4, 2}, dtype), weight({3, 1, 2}, dtype), out({4, 1}, dtype), din({4, 2}, dtype);
    OwnedTensor dout({4, 1}, dtype), dweight({3, 1, 2}, dtype);
    fill(in.view().slice(0, 3), {1, 2, 3, 4, 5, 6});
    fill(weight.view().slice(0, 1), {1, 10});  // expert 1's stay NaN
    fill(weight.view().slice(2, 1), {-1, 1});
    fill(dout.view().slice(0, 3), {1, 2, 3});
    ops::grouped_linear_forward(out, in, weight, offset, ctx);
    EXPECT_EQ(values(out.view().slice(0, 3)), (std::vector<double>{21, 43, 1}));
    EXPECT_TRUE(std::isnan(out[3]));
    ops::grouped_linear_backward_input(din, dout, weight, offset, ctx);
    EXPECT_EQ(values(din.view().slice(0, 3)), (std::vector<double>{1, 10, 2, 20, -3, 3}));
    EXPECT_TRUE(std::isnan(din[6]) && std::isnan(din[7]));
    fill(dweight, {100, 0, 7, 8, 0, 0});
    ops::grouped_linear_backward_weight(dweight, dout, in, offset, ctx);
    EXPECT_EQ(values(dweight), (std::vector<double>{107, 10, 7, 8, 15, 18}));
  }
}

struct GroupedCase {
  std::vector<std::int64_t> counts;
  std::int64_t spare_rows, inputs, outputs;
};
// Products are cut every 128 rows, weight gradients every 128 outputs: counts and widths on both sides of that.
const GroupedCase kGroupedCases[] = {
    {{1}, 0, 1, 1},
    {{0, 3, 0, 0, 2}, 7, 5, 3},
    {{17, 65, 0, 1}, 1, 17, 33},
    {{0, 1, 127, 128, 0, 129, 257, 3, 0}, 11, 9, 130},
    {{0, 0, 300}, 0, 33, 257},
    {{0, 0, 0}, 5, 4, 6},
};

// The tensors of one case. Rows beyond the experts' are NaN, as are the weights of experts without rows.
struct Grouped {
  std::int64_t n_experts, n_routed, n_rows;
  OwnedTensor offset, in, weight, dout;

  Grouped(const GroupedCase& c, DType dtype)
      : n_experts(static_cast<std::int64_t>(c.counts.size())),
        n_routed(0),
        n_rows(0),
        offset(offsets(c.counts)),
        in({0, 1}, dtype),
        weight(normal({n_experts, c.outputs, c.inputs}, dtype, "weight")),
        dout({0, 1}, dtype) {
    n_routed = static_cast<std::int64_t>(offset[n_experts]);
    n_rows = n_routed + c.spare_rows;
    in = normal_strided(n_rows, c.inputs, dtype, "in");
    dout = normal_strided(n_rows, c.outputs, dtype, "dout", 1.0, 2);
    poison(in.view().slice(n_routed, c.spare_rows));
    poison(dout.view().slice(n_routed, c.spare_rows));
    for (std::int64_t e = 0; e < n_experts; ++e)
      if (rows_of(e) == 0) poison(weight.view().slice(e, 1));
  }
  std::int64_t first_of(std::int64_t e) const { return static_cast<std::int64_t>(offset[e]); }
  std::int64_t rows_of(std::int64_t e) const { return first_of(e + 1) - first_of(e); }
  bool spare_rows_are_nan(const Tensor& rows) const {
    for (double value : values(rows.slice(n_routed, n_rows - n_routed)))
      if (!std::isnan(value)) return false;
    return true;
  }
};

TEST(GroupedLinear, IsALoopOverExperts) {
  for (const GroupedCase& c : kGroupedCases) {
    PoisonedContext ctx;
    const Grouped g(c, DType::f64);
    const OwnedTensor out = OwnedTensor::strided(g.n_rows, c.outputs, DType::f64, 1);
    const OwnedTensor din = OwnedTensor::strided(g.n_rows, c.inputs, DType::f64, 3);
    const Shape weight_shape{g.n_experts, c.outputs, c.inputs};
    const OwnedTensor dweight = normal(weight_shape, DType::f64, "dweight");
    ops::grouped_linear_forward(out, g.in, g.weight, g.offset, ctx);
    ops::grouped_linear_backward_input(din, g.dout, g.weight, g.offset, ctx);
    ops::grouped_linear_backward_weight(dweight, g.dout, g.in, g.offset, ctx);

    // In double a product's sums have one order, whatever the rows beside it: the bits are the same. An expert
    // without rows keeps the gradient that it had.
    const OwnedTensor loop_out({g.n_rows, c.outputs}, DType::f64), loop_din({g.n_rows, c.inputs}, DType::f64);
    const OwnedTensor loop_dweight = normal(weight_shape, DType::f64, "dweight");
    for (std::int64_t e = 0; e < g.n_experts; ++e) {
      const std::int64_t first = g.first_of(e), rows = g.rows_of(e);
      if (rows == 0) continue;
      const Tensor in = g.in.view().slice(first, rows), dout = g.dout.view().slice(first, rows);
      ops::linear_forward(loop_out.view().slice(first, rows), in, expert_matrix(g.weight, e), Write::set, ctx);
      ops::linear_backward_input(loop_din.view().slice(first, rows), dout, expert_matrix(g.weight, e),
                                 Write::set, ctx);
      ops::linear_backward_weight(expert_matrix(loop_dweight, e), dout, in, ctx);
    }
    EXPECT_TRUE(same_bits(out.view().slice(0, g.n_routed), loop_out.view().slice(0, g.n_routed)));
    EXPECT_TRUE(same_bits(din.view().slice(0, g.n_routed), loop_din.view().slice(0, g.n_routed)));
    EXPECT_TRUE(same_bits(dweight, loop_dweight));
    EXPECT_TRUE(g.spare_rows_are_nan(out) && g.spare_rows_are_nan(din));
    EXPECT_TRUE(out.margins_untouched() && din.margins_untouched());
  }
}

// A rank that holds other experts beside one computes the same bits of that one's rows: products are cut by the
// expert's own rows alone. (By how many these are, oneDNN may choose another order of the sum.)
TEST(GroupedLinear, AnExpertsRowsAreTheSameBitsWhateverExpertsAreBesideIt) {
  for (const MatmulType type : {MatmulType::f32, MatmulType::bf16, MatmulType::e4m3}) {
    for (const GroupedCase& c : kGroupedCases) {
      PoisonedContext ctx;
      ctx.matmul = type;
      const Grouped g(c, DType::f32);
      // Rows of experts [first, last): outputs and gradients of inputs.
      const auto compute = [&](std::int64_t first, std::int64_t last) {
        const std::int64_t before = g.first_of(first), rows = g.first_of(last) - before;
        std::vector<double> offsets;
        for (std::int64_t e = first; e <= last; ++e)
          offsets.push_back(static_cast<double>(g.first_of(e) - before));
        const OwnedTensor offset = ints(offsets), out({rows, c.outputs}, DType::f32),
                          din({rows, c.inputs}, DType::f32);
        const Tensor weight = g.weight.view().slice(first, last - first);
        ops::grouped_linear_forward(out, g.in.view().slice(before, rows), weight, offset, ctx);
        ops::grouped_linear_backward_input(din, g.dout.view().slice(before, rows), weight, offset, ctx);
        return std::pair(values(out), values(din));
      };
      const auto [out, din] = compute(0, g.n_experts);
      std::vector<double> outs, dins;
      for (std::int64_t e = 0; e < g.n_experts; ++e) {
        const auto [alone, dalone] = compute(e, e + 1);
        outs.insert(outs.end(), alone.begin(), alone.end());
        dins.insert(dins.end(), dalone.begin(), dalone.end());
      }
      EXPECT_EQ(outs, out) << g.n_routed << " rows of " << g.n_experts << " experts";
      EXPECT_EQ(dins, din) << g.n_routed << " rows of " << g.n_experts << " experts";
    }
  }
}

TEST(GroupedLinear, GateUpIsTheProductAndItsActivation) {
  for (const MatmulType type : {MatmulType::f32, MatmulType::bf16, MatmulType::e4m3})
    for (const GroupedCase& c : kGroupedCases) {
      PoisonedContext ctx;
      ctx.matmul = type;
      const Grouped g({c.counts, c.spare_rows, c.inputs, 2 * c.outputs}, DType::f32);
      fill_normal(g.in, "in");  // spare rows, too: what comes of them would show
      const OwnedTensor row_weight = normal({g.n_rows}, DType::f32, "row_weight");
      const auto output = [&](std::int64_t columns) {
        return OwnedTensor::strided(g.n_rows, columns, DType::f32, 1);
      };
      const OwnedTensor act = output(c.outputs), gate_up = output(2 * c.outputs);
      ops::grouped_gate_up_forward(act, gate_up, g.in, g.weight, row_weight, g.offset, ctx);
      const OwnedTensor act_apart = output(c.outputs), gate_up_apart = output(2 * c.outputs);
      ops::grouped_linear_forward(gate_up_apart, g.in, g.weight, g.offset, ctx);
      ops::expert_swiglu_forward(act_apart, gate_up_apart, row_weight, g.offset, ctx);
      EXPECT_TRUE(same_bits(gate_up.view().slice(0, g.n_routed), gate_up_apart.view().slice(0, g.n_routed)));
      EXPECT_TRUE(same_bits(act.view().slice(0, g.n_routed), act_apart.view().slice(0, g.n_routed)));
      EXPECT_TRUE(g.spare_rows_are_nan(act) && g.spare_rows_are_nan(gate_up));
      EXPECT_TRUE(act.margins_untouched() && gate_up.margins_untouched());
    }
}

TEST(GroupedLinear, DownBackwardIsTheProductsAndTheActivations) {
  for (const MatmulType type : {MatmulType::f32, MatmulType::bf16, MatmulType::e4m3})
    for (const GroupedCase& c : kGroupedCases) {
      PoisonedContext ctx;
      ctx.matmul = type;
      const Grouped g(c, DType::f32);
      const OwnedTensor row_weight = normal({g.n_rows}, DType::f32, "row_weight"),
                        gate_up = normal_strided(g.n_rows, 2 * c.inputs, DType::f32, "gate_up");
      const auto output = [&](std::int64_t columns) {
        return OwnedTensor::strided(g.n_rows, columns, DType::f32, 1);
      };
      const OwnedTensor dgate_up = output(2 * c.inputs), dgate_up_apart = output(2 * c.inputs),
                        dact = output(c.inputs);
      const OwnedTensor dweight({g.n_rows}, DType::f32), dweight_apart({g.n_rows}, DType::f32);
      ops::grouped_down_backward(dgate_up, dweight, g.dout, g.weight, gate_up, row_weight, g.offset, ctx);
      ops::grouped_linear_backward_input(dact, g.dout, g.weight, g.offset, ctx);
      ops::expert_swiglu_backward(dgate_up_apart, dweight_apart, dact, gate_up, row_weight, g.offset, ctx);
      const auto routed = [&](const Tensor& rows) { return rows.slice(0, g.n_routed); };
      EXPECT_TRUE(same_bits(routed(dgate_up), routed(dgate_up_apart)));
      EXPECT_TRUE(same_bits(routed(dweight), routed(dweight_apart)));
      EXPECT_TRUE(g.spare_rows_are_nan(dgate_up) && g.spare_rows_are_nan(dweight));
      EXPECT_TRUE(dgate_up.margins_untouched());
      ops::grouped_down_backward(gate_up, dweight, g.dout, g.weight, gate_up, row_weight, g.offset, ctx);
      EXPECT_TRUE(same_bits(routed(gate_up), routed(dgate_up))) << "in place";
    }
}

TEST(GroupedLinear, DownBackwardRefusesOtherShapesAndDtypes) {
  PoisonedContext ctx;
  const OwnedTensor dout({2, 3}, DType::f32), weight({2, 3, 2}, DType::f32), gate_up({2, 4}, DType::f32);
  const OwnedTensor wide({2, 5}, DType::f32), dout64({2, 3}, DType::f64), gate_up64({2, 4}, DType::f64);
  const OwnedTensor row({2}, DType::f32), short_row({1}, DType::f32), row64({2}, DType::f64);
  const OwnedTensor offset = ints({0, 1, 2});
  const auto call = [&](const Tensor& dgate_up, const Tensor& dweight, const Tensor& dout_RN,
                        const Tensor& saved, const Tensor& weight_R, const Tensor& offset_Ep) {
    ops::grouped_down_backward(dgate_up, dweight, dout_RN, weight, saved, weight_R, offset_Ep, ctx);
  };
  EXPECT_THROW(call(wide, row, dout, gate_up, row, offset), std::logic_error);
  EXPECT_THROW(call(gate_up64, row, dout, gate_up, row, offset), std::logic_error);
  EXPECT_THROW(call(gate_up, short_row, dout, gate_up, row, offset), std::logic_error);
  EXPECT_THROW(call(gate_up, row, wide, gate_up, row, offset), std::logic_error);
  EXPECT_THROW(call(gate_up, row, dout64, gate_up, row, offset), std::logic_error);
  EXPECT_THROW(call(gate_up, row, dout, wide, row, offset), std::logic_error);
  EXPECT_THROW(call(gate_up, row, dout, gate_up, short_row, offset), std::logic_error);
  EXPECT_THROW(call(gate_up, row64, dout, gate_up, row64, offset), std::logic_error);
  EXPECT_THROW(call(gate_up, row, dout, gate_up, row, row), std::logic_error);
}

TEST(GroupedLinear, GateUpRefusesOtherShapesAndDtypes) {
  PoisonedContext ctx;
  const OwnedTensor in({2, 3}, DType::f32), weight({2, 4, 3}, DType::f32), gate_up({2, 4}, DType::f32);
  const OwnedTensor act({2, 2}, DType::f32), wide({2, 3}, DType::f32), act64({2, 2}, DType::f64);
  const OwnedTensor row_weight({2}, DType::f32), short_weight({1}, DType::f32), weight64({2}, DType::f64);
  const OwnedTensor offset = ints({0, 1, 2});
  EXPECT_THROW(ops::grouped_gate_up_forward(wide, gate_up, in, weight, row_weight, offset, ctx),
               std::logic_error);
  EXPECT_THROW(ops::grouped_gate_up_forward(act64, gate_up, in, weight, row_weight, offset, ctx),
               std::logic_error);
  EXPECT_THROW(ops::grouped_gate_up_forward(act, wide, in, weight, row_weight, offset, ctx), std::logic_error);
  EXPECT_THROW(ops::grouped_gate_up_forward(act, gate_up, in, weight, short_weight, offset, ctx),
               std::logic_error);
  EXPECT_THROW(ops::grouped_gate_up_forward(act, gate_up, in, weight, weight64, offset, ctx), std::logic_error);
  EXPECT_THROW(ops::grouped_gate_up_forward(act, gate_up, in, weight, row_weight, row_weight, ctx),
               std::logic_error);
}

TEST(GroupedLinear, GradientsMatchFiniteDifferences) {
  for (const GroupedCase& c : kGroupedCases) {
    PoisonedContext ctx;
    const Grouped g(c, DType::f64);
    if (g.n_routed == 0) continue;
    const OwnedTensor out = OwnedTensor::strided(g.n_rows, c.outputs, DType::f64, 1);
    const Tensor routed_out = out.view().slice(0, g.n_routed), routed_dout = g.dout.view().slice(0, g.n_routed);
    const auto loss = [&] {
      ops::grouped_linear_forward(out, g.in, g.weight, g.offset, ctx);
      return dot(routed_dout, routed_out);
    };
    // As in Linear: the loss has up to 700,000 terms of order one, whose rounding shows up to 1e-8.
    const GradientTolerance tolerance{.absolute = 5e-8, .max_elements = 7};
    const OwnedTensor din = OwnedTensor::strided(g.n_rows, c.inputs, DType::f64, 3);
    ops::grouped_linear_backward_input(din, g.dout, g.weight, g.offset, ctx);
    EXPECT_TRUE(
        gradient_matches(g.in.view().slice(0, g.n_routed), din.view().slice(0, g.n_routed), loss, tolerance));

    const OwnedTensor dweight = normal({g.n_experts, c.outputs, c.inputs}, DType::f64, "dweight");
    const std::vector<double> before = values(dweight);
    ops::grouped_linear_backward_weight(dweight, g.dout, g.in, g.offset, ctx);
    const std::size_t per_expert = static_cast<std::size_t>(c.outputs * c.inputs);
    const std::vector<double> added = difference(values(dweight), before);
    for (std::int64_t e = 0; e < g.n_experts; ++e) {
      const auto first = added.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(e) * per_expert);
      const std::vector<double> of_expert(first, first + static_cast<std::ptrdiff_t>(per_expert));
      if (g.rows_of(e) == 0) {
        EXPECT_EQ(of_expert, std::vector<double>(per_expert, 0.0)) << "expert " << e;
      } else {
        EXPECT_TRUE(gradient_matches(expert_matrix(g.weight, e), of_expert, loss, tolerance)) << "expert " << e;
      }
    }
  }
}

TEST(GroupedLinear, FloatFollowsDouble) {
  for (const GroupedCase& c : kGroupedCases) {
    PoisonedContext ctx;
    const auto run = [&](DType dtype, bool magnitudes) {
      Grouped g(c, dtype);
      if (magnitudes) g.in = absolute(g.in), g.weight = absolute(g.weight), g.dout = absolute(g.dout);
      const OwnedTensor out = OwnedTensor::strided(g.n_rows, c.outputs, dtype, 1);
      const OwnedTensor din = OwnedTensor::strided(g.n_rows, c.inputs, dtype, 3);
      const OwnedTensor dweight({g.n_experts, c.outputs, c.inputs}, dtype);
      fill(dweight, std::vector<double>(static_cast<std::size_t>(dweight.numel()), 0.0));
      ops::grouped_linear_forward(out, g.in, g.weight, g.offset, ctx);
      ops::grouped_linear_backward_input(din, g.dout, g.weight, g.offset, ctx);
      ops::grouped_linear_backward_weight(dweight, g.dout, g.in, g.offset, ctx);
      EXPECT_TRUE(g.spare_rows_are_nan(out) && g.spare_rows_are_nan(din));
      EXPECT_TRUE(out.margins_untouched() && din.margins_untouched());
      return std::vector{values(out.view().slice(0, g.n_routed)), values(din.view().slice(0, g.n_routed)),
                         values(dweight)};
    };
    const auto actual = run(DType::f32, false), exact = run(DType::f64, false),
               magnitude = run(DType::f64, true);
    EXPECT_TRUE(within_rounding(actual[0], exact[0], magnitude[0], c.inputs));
    EXPECT_TRUE(within_rounding(actual[1], exact[1], magnitude[1], c.outputs));
    std::int64_t most_rows = 0;
    for (std::int64_t count : c.counts) most_rows = std::max(most_rows, count);
    EXPECT_TRUE(within_rounding(actual[2], exact[2], magnitude[2], most_rows + 1));
  }
}

TEST(GroupedLinear, SameBitsOnAnyThreadCount) {
  PoisonedContext ctx;
  const GroupedCase c{{0, 1, 127, 128, 0, 129, 300, 3, 0}, 0, 65, 130};
  const Grouped g(c, DType::f32);
  const auto forward = [&] {
    OwnedTensor out({g.n_rows, c.outputs}, DType::f32);
    ops::grouped_linear_forward(out, g.in, g.weight, g.offset, ctx);
    return out;
  };
  const auto backward_input = [&] {
    OwnedTensor din({g.n_rows, c.inputs}, DType::f32);
    ops::grouped_linear_backward_input(din, g.dout, g.weight, g.offset, ctx);
    return din;
  };
  const auto backward_weight = [&] {
    OwnedTensor dweight = normal({g.n_experts, c.outputs, c.inputs}, DType::f32, "dweight");
    ops::grouped_linear_backward_weight(dweight, g.dout, g.in, g.offset, ctx);
    return dweight;
  };
  expect_same_bits_on_any_thread_count(forward);
  expect_same_bits_on_any_thread_count(backward_input);
  expect_same_bits_on_any_thread_count(backward_weight);
  EXPECT_TRUE(same_bits(forward(), forward()));
  EXPECT_TRUE(same_bits(backward_input(), backward_input()));
  EXPECT_TRUE(same_bits(backward_weight(), backward_weight()));
}

TEST(GroupedLinear, RefusesOtherShapes) {
  PoisonedContext ctx;
  const OwnedTensor in({2, 3}, DType::f32), weight({2, 4, 3}, DType::f32), out({2, 4}, DType::f32);
  const OwnedTensor wide({2, 5}, DType::f32), flat({4, 3}, DType::f32);
  const OwnedTensor offset = ints({0, 1, 2}), short_offset = ints({0, 2});
  EXPECT_THROW(ops::grouped_linear_forward(wide, in, weight, offset, ctx), std::logic_error);
  EXPECT_THROW(ops::grouped_linear_forward(out, in, flat, offset, ctx), std::logic_error);
  EXPECT_THROW(ops::grouped_linear_forward(out, in, weight, short_offset, ctx), std::logic_error);
  EXPECT_THROW(ops::grouped_linear_backward_input(wide, out, weight, offset, ctx), std::logic_error);
  EXPECT_THROW(ops::grouped_linear_backward_weight(weight, wide, in, offset, ctx), std::logic_error);
}

// A wrong dtype that only shows inside a parallel region would end the process.
TEST(Linear, RefusesOtherDtypes) {
  PoisonedContext ctx;
  const OwnedTensor in({2, 3}, DType::f32), weight({4, 3}, DType::f32), out({2, 4}, DType::f32);
  const OwnedTensor in64({2, 3}, DType::f64), weight64({4, 3}, DType::f64), out64({2, 4}, DType::f64);
  const auto set = ops::Write::set;
  EXPECT_THROW(ops::linear_forward(out64, in, weight, set, ctx), std::logic_error);
  EXPECT_THROW(ops::linear_forward(out, in64, weight, set, ctx), std::logic_error);
  EXPECT_THROW(ops::linear_forward(out, in, weight64, set, ctx), std::logic_error);
  EXPECT_THROW(ops::linear_backward_input(in64, out, weight, set, ctx), std::logic_error);
  EXPECT_THROW(ops::linear_backward_input(in, out64, weight, set, ctx), std::logic_error);
  EXPECT_THROW(ops::linear_backward_input(in, out, weight64, set, ctx), std::logic_error);
  EXPECT_THROW(ops::linear_backward_weight(weight64, out, in, ctx), std::logic_error);
  EXPECT_THROW(ops::linear_backward_weight(weight, out64, in, ctx), std::logic_error);
  EXPECT_THROW(ops::linear_backward_weight(weight, out, in64, ctx), std::logic_error);
}

TEST(GroupedLinear, RefusesOtherDtypes) {
  PoisonedContext ctx;
  const OwnedTensor in({2, 3}, DType::f32), weight({2, 4, 3}, DType::f32), out({2, 4}, DType::f32);
  const OwnedTensor in64({2, 3}, DType::f64), weight64({2, 4, 3}, DType::f64), out64({2, 4}, DType::f64);
  const OwnedTensor offset = ints({0, 1, 2}), float_offset({3}, DType::f32);
  EXPECT_THROW(ops::grouped_linear_forward(out64, in, weight, offset, ctx), std::logic_error);
  EXPECT_THROW(ops::grouped_linear_forward(out, in64, weight, offset, ctx), std::logic_error);
  EXPECT_THROW(ops::grouped_linear_forward(out, in, weight64, offset, ctx), std::logic_error);
  EXPECT_THROW(ops::grouped_linear_forward(out, in, weight, float_offset, ctx), std::logic_error);
  EXPECT_THROW(ops::grouped_linear_backward_input(in64, out, weight, offset, ctx), std::logic_error);
  EXPECT_THROW(ops::grouped_linear_backward_weight(weight64, out, in, offset, ctx), std::logic_error);
}

}  // namespace
}  // namespace switchyard::test
