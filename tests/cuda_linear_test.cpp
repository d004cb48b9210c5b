#include "ops/linear.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "cuda_precisions.h"
#include "cuda_support.h"
#include "ops/swiglu.h"
#ifdef SWITCHYARD_SIMT
#include "engine.h"
#endif
#include "rounding_bound.h"

namespace switchyard::test {
namespace {

using ops::Write;

// bf16 comes twice under the emulator: compute capability 9.0 has kernels of its own (gemm_wgmma.cu). E4M3, of
// bf16 and of float, only where there are instructions for it.
struct Setting : Precision {
  bool old_device = false;
};
std::vector<Setting> settings() {
  std::vector<Setting> all;
  for (const Precision& precision : kPrecisions) all.push_back({precision});
#ifdef SWITCHYARD_SIMT
  all.push_back({{"bf16_old_device", DType::bf16, MatmulType::bf16}, true});
#endif
  all.push_back({{"e4m3", DType::bf16, MatmulType::e4m3}});
  all.push_back({{"e4m3_of_f32", DType::f32, MatmulType::e4m3}});
  return all;
}

class CudaLinearTypes : public ::testing::TestWithParam<Setting> {
 protected:
  CudaLinearTypes() {
    ctx.matmul = GetParam().matmul;
    if (ctx.matmul == MatmulType::e4m3) host_ctx.matmul = MatmulType::e4m3;  // which rounds operands in double
#ifdef SWITCHYARD_SIMT
    simt::capability.major = GetParam().old_device ? 8 : 9;
#endif
  }
  ~CudaLinearTypes() override {
#ifdef SWITCHYARD_SIMT
    simt::capability.major = 9;
#endif
  }
  void SetUp() override {
    const std::string reason = ops::cuda::e4m3_unavailable_reason();
    if (GetParam().matmul == MatmulType::e4m3 && !reason.empty()) GTEST_SKIP() << reason;
  }
  DType dtype() const { return GetParam().dtype; }

  // What the kernels multiply, exactly.
  OwnedTensor operand(const DeviceTensor& tensor) const {
    OwnedTensor host = tensor.as_f64();
    if (GetParam().matmul == MatmulType::bf16) {
      const OwnedTensor rounded(host.view().shape(), DType::bf16);
      fill(rounded, values(host));
      fill(host, values(rounded));
    }
    return host;
  }
  // Each element of `actual` is a sum of `terms` products in float32, whose absolute values sum to `magnitude`:
  // each partial sum may be rounded. In bf16 the result is rounded once more, to 8 bits.
  static ::testing::AssertionResult near(const DeviceTensor& actual, const Tensor& exact,
                                         const Tensor& magnitude, std::int64_t terms) {
    const std::vector<double> found = actual.values();
    for (std::int64_t i = 0; i < exact.numel(); ++i) {
      const double last = actual.view().dtype() == DType::bf16 ? 0x1p-8 * std::abs(get(exact, i)) : 0;
      double allowed = (static_cast<double>(terms) + 2) * kFloatUnit * get(magnitude, i) * 1.01 + last;
#ifndef SWITCHYARD_SIMT
      // Tensor cores keep some 14 bits of a sum of products in FP8 (arXiv 2412.19437, section 3.5.2).
      if (GetParam().matmul == MatmulType::e4m3) allowed += 0x1p-9 * get(magnitude, i);
#endif
      const double value = found[static_cast<std::size_t>(i)];
      const bool untouched = std::isnan(value) && std::isnan(get(exact, i));
      if (!untouched && !(std::abs(value - get(exact, i)) <= allowed))
        return ::testing::AssertionFailure() << "element " << i << " is " << value << ", exactly "
                                             << get(exact, i) << ", may be off by " << allowed;
    }
    return ::testing::AssertionSuccess();
  }

  DeviceContext ctx;
  Context host_ctx;
};

struct Sizes {
  std::int64_t rows, inputs, outputs,
      margin;  // margin > 0: strided rows; 8 keeps them at multiples of 16 bytes
};
// A tile has 128 x 128 outputs and sums 32 (16 in float32) at a time, through a ring of 4 stages: sizes on both
// sides of each, with rows that are multiples of 16 bytes and that are not.
const Sizes kSizes[] = {{1, 1, 1, 0},      {3, 5, 2, 3},     {17, 33, 8, 5},
                        {129, 8, 130, 1},  {1, 16, 136, 8},  {130, 24, 40, 8},
                        {40, 136, 264, 0}, {33, 257, 16, 0}, {8, 160, 8, 8}};

TEST_P(CudaLinearTypes, EqualsTheCpu) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(::testing::Message() << s.rows << " x " << s.inputs << " -> " << s.outputs << " margin "
                                      << s.margin);
    const auto device = [&](std::int64_t rows, std::int64_t columns, DType type, const char* name) {
      return DeviceTensor::of(normal({rows, columns}, DType::f64, name), type, ctx, s.margin);
    };
    const auto output = [&](std::int64_t rows, std::int64_t columns, DType type) {
      return s.margin > 0 ? DeviceTensor::strided(rows, columns, type, ctx, s.margin)
                          : DeviceTensor({rows, columns}, type, ctx);
    };
    const auto in = device(s.rows, s.inputs, dtype(), "in"),
               weight = device(s.outputs, s.inputs, dtype(), "weight"),
               dout = device(s.rows, s.outputs, dtype(), "dout");
    const OwnedTensor in64 = operand(in), weight64 = operand(weight), dout64 = operand(dout);
    const OwnedTensor in_size = absolute(in64), weight_size = absolute(weight64), dout_size = absolute(dout64);

    for (Write write : {Write::set, Write::add}) {
      const bool add = write == Write::add;
      const auto out = add ? device(s.rows, s.outputs, dtype(), "out") : output(s.rows, s.outputs, dtype());
      const auto din = add ? device(s.rows, s.inputs, dtype(), "din") : output(s.rows, s.inputs, dtype());
      const OwnedTensor out64 = out.as_f64(), din64 = din.as_f64(), out_size = absolute(out64),
                        din_size = absolute(din64);
      ops::linear_forward(out64, in64, weight64, write, host_ctx);
      ops::linear_forward(out_size, in_size, weight_size, write, host_ctx);
      ops::linear_backward_input(din64, dout64, weight64, write, host_ctx);
      ops::linear_backward_input(din_size, dout_size, weight_size, write, host_ctx);
      ops::cuda::linear_forward(out, in, weight, write, ctx);
      ops::cuda::linear_backward_input(din, dout, weight, write, ctx);
      EXPECT_TRUE(near(out, out64, out_size, s.inputs)) << "forward, added: " << add;
      EXPECT_TRUE(near(din, din64, din_size, s.outputs)) << "din, added: " << add;
      EXPECT_TRUE(s.margin == 0 || (out.margins_untouched() && din.margins_untouched()));
    }

    // An addend elsewhere, of another stride: with and without packs.
    for (std::int64_t margin : {0, 3, 8}) {
      const auto addend =
          DeviceTensor::of(normal({s.rows, s.outputs}, DType::f64, "out"), dtype(), ctx, margin);
      const auto sum = output(s.rows, s.outputs, dtype());
      const OwnedTensor sum64 = addend.as_f64(), sum_size = absolute(sum64);
      ops::linear_forward(sum64, in64, weight64, Write::add, host_ctx);
      ops::linear_forward(sum_size, in_size, weight_size, Write::add, host_ctx);
      ops::cuda::linear_forward_add(sum, addend, in, weight, ctx);
      EXPECT_TRUE(near(sum, sum64, sum_size, s.inputs)) << "addend with margin " << margin;
      EXPECT_TRUE(s.margin == 0 || sum.margins_untouched());
    }

    // Outputs of another type than the operands: logits, and all gradients of weights.
    const auto out = output(s.rows, s.outputs, DType::f32);
    const OwnedTensor out64({s.rows, s.outputs}, DType::f64), out_size({s.rows, s.outputs}, DType::f64);
    ops::linear_forward(out64, in64, weight64, Write::set, host_ctx);
    ops::linear_forward(out_size, in_size, weight_size, Write::set, host_ctx);
    ops::cuda::linear_forward(out, in, weight, Write::set, ctx);
    EXPECT_TRUE(near(out, out64, out_size, s.inputs)) << "forward to f32";
    EXPECT_TRUE(s.margin == 0 || out.margins_untouched());

    const auto dweight = device(s.outputs, s.inputs, DType::f32, "dweight");
    const OwnedTensor dweight64 = dweight.as_f64(), dweight_size = absolute(dweight64);
    ops::linear_backward_weight(dweight64, dout64, in64, host_ctx);
    ops::linear_backward_weight(dweight_size, dout_size, in_size, host_ctx);
    ops::cuda::linear_backward_weight(dweight, dout, in, ctx);
    EXPECT_TRUE(near(dweight, dweight64, dweight_size, s.rows)) << "dweight";
    EXPECT_TRUE(s.margin == 0 || dweight.margins_untouched());
  }
}

TEST_P(CudaLinearTypes, EmptySums) {
  const auto weight = DeviceTensor::of(normal({4, 3}, DType::f64, "weight"), dtype(), ctx);
  const DeviceTensor no_in({0, 3}, dtype(), ctx), no_out({0, 4}, dtype(), ctx);
  ops::cuda::linear_forward(no_out, no_in, weight, Write::set, ctx);
  ops::cuda::linear_backward_input(no_in, no_out, weight, Write::set, ctx);
  const auto dweight = DeviceTensor::of(normal({4, 3}, DType::f32, "dweight"), ctx);
  const std::vector<double> before = dweight.values();
  ops::cuda::linear_backward_weight(dweight, no_out, no_in, ctx);
  EXPECT_EQ(dweight.values(), before);
  const DeviceTensor in({2, 0}, dtype(), ctx), narrow({4, 0}, dtype(), ctx), out({2, 4}, dtype(), ctx);
  ops::cuda::linear_forward(out, in, narrow, Write::set, ctx);
  EXPECT_EQ(out.values(), std::vector<double>(8, 0.0));
}

struct GroupedCase {
  std::vector<std::int64_t> counts;
  std::int64_t spare_rows, inputs, outputs;
};
// Experts without rows first, last and in between; counts on both sides of a tile's 128 rows and of the steps
// of 32 of a weight gradient's sum; more experts than a warp has lanes.
const GroupedCase kGroupedCases[] = {
    {{1}, 0, 1, 1},
    {{0, 3, 0, 0, 2}, 7, 5, 3},
    {{17, 65, 0, 1}, 1, 24, 136},
    {{0, 1, 127, 128, 0, 129, 3, 0}, 11, 9, 24},
    {{0, 0, 150}, 0, 136, 8},
    {{0, 0, 0}, 5, 4, 6},
    {{2, 0, 1, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0,
      0, 2, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 9, 0, 1},
     3,
     16,
     8},
    {{0, 140, 3, 0}, 5, 110, 44},  // even, and no multiple of 8
};

// The tensors of one case. Rows beyond the experts' are NaN, as are the weights of experts without rows.
struct Grouped {
  std::int64_t n_experts, n_routed = 0, n_rows;
  OwnedTensor offset, in, weight, dout;

  explicit Grouped(const GroupedCase& c)
      : n_experts(static_cast<std::int64_t>(c.counts.size())),
        n_rows(0),
        offset({n_experts + 1}, DType::i32),
        in({0, 1}, DType::f64),
        weight(normal({n_experts, c.outputs, c.inputs}, DType::f64, "weight")),
        dout({0, 1}, DType::f64) {
    set(offset, 0, 0);
    for (std::int64_t e = 0; e < n_experts; ++e) {
      n_routed += c.counts[static_cast<std::size_t>(e)];
      set(offset, e + 1, static_cast<double>(n_routed));
      if (c.counts[static_cast<std::size_t>(e)] == 0) poison(weight.view().slice(e, 1));
    }
    n_rows = n_routed + c.spare_rows;
    in = normal({n_rows, c.inputs}, DType::f64, "in");
    dout = normal({n_rows, c.outputs}, DType::f64, "dout");
    poison(in.view().slice(n_routed, c.spare_rows));
    poison(dout.view().slice(n_routed, c.spare_rows));
  }
};

TEST_P(CudaLinearTypes, GroupedEqualsTheCpu) {
  for (const GroupedCase& c : kGroupedCases) {
    const Grouped g(c);
    SCOPED_TRACE(::testing::Message() << g.n_routed << " rows of " << g.n_experts << " experts");
    for (std::int64_t margin : {3, 8}) {
      const auto in = DeviceTensor::of(g.in, dtype(), ctx, margin),
                 dout = DeviceTensor::of(g.dout, dtype(), ctx, margin),
                 weight = DeviceTensor::of(g.weight, dtype(), ctx), offset = DeviceTensor::of(g.offset, ctx);
      const auto out = DeviceTensor::strided(g.n_rows, c.outputs, dtype(), ctx, margin),
                 din = DeviceTensor::strided(g.n_rows, c.inputs, dtype(), ctx, margin);
      const OwnedTensor before = normal(g.weight.view().shape(), DType::f32, "dweight");
      for (std::int64_t e = 0; e < g.n_experts; ++e) {
        if (c.counts[static_cast<std::size_t>(e)] > 0) continue;
        fill(before.view().slice(e, 1),
             std::vector<double>(static_cast<std::size_t>(c.outputs * c.inputs), -0.0));
      }
      const auto dweight = DeviceTensor::of(before, ctx);
      ops::cuda::grouped_linear_forward(out, in, weight, offset, ctx);
      ops::cuda::grouped_linear_backward_input(din, dout, weight, offset, ctx);
      ops::cuda::grouped_linear_backward_weight(dweight, dout, in, offset, ctx);

      const OwnedTensor in64 = operand(in), weight64 = operand(weight), dout64 = operand(dout);
      const OwnedTensor out64({g.n_rows, c.outputs}, DType::f64), din64({g.n_rows, c.inputs}, DType::f64);
      const OwnedTensor exact_dweight(g.weight.view().shape(), DType::f64);
      fill(exact_dweight, values(before));
      const OwnedTensor out_size({g.n_rows, c.outputs}, DType::f64), din_size({g.n_rows, c.inputs}, DType::f64),
          dweight_size = absolute(exact_dweight);
      ops::grouped_linear_forward(out64, in64, weight64, g.offset, host_ctx);
      ops::grouped_linear_backward_input(din64, dout64, weight64, g.offset, host_ctx);
      ops::grouped_linear_backward_weight(exact_dweight, dout64, in64, g.offset, host_ctx);
      ops::grouped_linear_forward(out_size, absolute(in64), absolute(weight64), g.offset, host_ctx);
      ops::grouped_linear_backward_input(din_size, absolute(dout64), absolute(weight64), g.offset, host_ctx);
      ops::grouped_linear_backward_weight(dweight_size, absolute(dout64), absolute(in64), g.offset, host_ctx);

      // Spare rows are NaN in both.
      EXPECT_TRUE(near(out, out64, out_size, c.inputs)) << "forward";
      EXPECT_TRUE(near(din, din64, din_size, c.outputs)) << "din";
      EXPECT_TRUE(near(dweight, exact_dweight, dweight_size, g.n_routed)) << "dweight";
      EXPECT_TRUE(out.margins_untouched() && din.margins_untouched());
      // An expert without rows keeps its gradient's bits: to add nothing would make 0 of its -0.
      const std::vector<double> after = dweight.values();
      for (std::int64_t i = 0; i < before.numel(); ++i) {
        const std::int64_t e = i / before.view().row_size();
        if (c.counts[static_cast<std::size_t>(e)] > 0) continue;
        EXPECT_TRUE(after[static_cast<std::size_t>(i)] == 0 &&
                    std::signbit(after[static_cast<std::size_t>(i)]));
      }
    }
  }
}

// The first `rows` rows, and whether all others are NaN.
std::vector<double> first_rows(const DeviceTensor& tensor, std::int64_t rows) {
  std::vector<double> all = tensor.values();
  all.resize(static_cast<std::size_t>(rows * tensor.view().row_size()));
  return all;
}
bool rest_is_nan(const DeviceTensor& tensor, std::int64_t rows) {
  const std::vector<double> all = tensor.values();
  return std::all_of(all.begin() + static_cast<std::ptrdiff_t>(rows * tensor.view().row_size()), all.end(),
                     [](double value) { return std::isnan(value); });
}

// Gates, ups and activations in one pass are, bit for bit, those of the two that it replaces.
TEST_P(CudaLinearTypes, GateUpEqualsItsParts) {
  for (const GroupedCase& c : kGroupedCases) {
    const Grouped g({c.counts, c.spare_rows, c.inputs, 2 * c.outputs});
    fill_normal(g.in, "in");  // spare rows, too: what comes of them would show
    SCOPED_TRACE(::testing::Message() << g.n_routed << " rows of " << g.n_experts << " experts, width "
                                      << c.outputs);
    for (std::int64_t margin : {3, 8}) {
      const auto in = DeviceTensor::of(g.in, dtype(), ctx, margin),
                 weight = DeviceTensor::of(g.weight, dtype(), ctx), offset = DeviceTensor::of(g.offset, ctx);
      const OwnedTensor row_weight = normal({g.n_rows}, DType::f32, "row_weight");
      const auto weight_R = DeviceTensor::of(row_weight, ctx);
      const auto output = [&](std::int64_t columns) {
        return DeviceTensor::strided(g.n_rows, columns, dtype(), ctx, margin);
      };
      const auto act = output(c.outputs), gate_up = output(2 * c.outputs);
      ops::cuda::grouped_gate_up_forward(act, gate_up, in, weight, weight_R, offset, ctx);
      const auto act_apart = output(c.outputs), gate_up_apart = output(2 * c.outputs);
      ops::cuda::grouped_linear_forward(gate_up_apart, in, weight, offset, ctx);
      ops::cuda::expert_swiglu_forward(act_apart, gate_up_apart, weight_R, offset, ctx);
      for (const auto& [one, other] : {std::pair{&gate_up, &gate_up_apart}, std::pair{&act, &act_apart}}) {
        EXPECT_EQ(first_rows(*one, g.n_routed), first_rows(*other, g.n_routed));
        EXPECT_TRUE(rest_is_nan(*one, g.n_routed));
      }
      EXPECT_TRUE(act.margins_untouched() && gate_up.margins_untouched());
    }
  }
}

// The gradients of gates and ups from that of the experts' outputs are, bit for bit, those of the two passes;
// the weights' are sums of the same terms in another order.
TEST_P(CudaLinearTypes, DownBackwardEqualsItsParts) {
  for (const GroupedCase& c : kGroupedCases) {
    const std::int64_t width = c.inputs;
    const Grouped g(c);
    fill_normal(g.dout, "dout");  // spare rows, too: what comes of them would show
    SCOPED_TRACE(::testing::Message() << g.n_routed << " rows of " << g.n_experts << " experts, width "
                                      << width);
    for (std::int64_t margin : {3, 8}) {
      const auto dout = DeviceTensor::of(g.dout, dtype(), ctx, margin),
                 gate_up = DeviceTensor::of(normal({g.n_rows, 2 * width}, DType::f64, "gate_up"), dtype(), ctx,
                                            margin);
      const auto weight = DeviceTensor::of(g.weight, dtype(), ctx), offset = DeviceTensor::of(g.offset, ctx),
                 weight_R = DeviceTensor::of(normal({g.n_rows}, DType::f32, "row_weight"), ctx);
      const auto output = [&](std::int64_t columns) {
        return DeviceTensor::strided(g.n_rows, columns, dtype(), ctx, margin);
      };
      const auto dgate_up = output(2 * width), dgate_up_apart = output(2 * width), dact = output(width);
      const DeviceTensor dweight({g.n_rows}, DType::f32, ctx), dweight_apart({g.n_rows}, DType::f32, ctx);
      ops::cuda::grouped_down_backward(dgate_up, dweight, dout, weight, gate_up, weight_R, offset, ctx);
      ops::cuda::grouped_linear_backward_input(dact, dout, weight, offset, ctx);
      ops::cuda::expert_swiglu_backward(dgate_up_apart, dweight_apart, dact, gate_up, weight_R, offset, ctx);
      const auto routed = [&](const DeviceTensor& rows) { return first_rows(rows, g.n_routed); };
      EXPECT_EQ(routed(dgate_up), routed(dgate_up_apart));
      EXPECT_TRUE(rest_is_nan(dgate_up, g.n_routed) && rest_is_nan(dweight, g.n_routed));
      EXPECT_TRUE(dgate_up.margins_untouched());

      // Each partial sum of up to `width` terms is rounded, in both.
      const OwnedTensor dact_size = absolute(dact.as_f64()), gate_up_size = absolute(gate_up.as_f64());
      const OwnedTensor ignored({g.n_rows, 2 * width}, DType::f64), size({g.n_rows}, DType::f64);
      ops::expert_swiglu_backward(ignored, size, dact_size, gate_up_size, weight_R.as_f64(), g.offset,
                                  host_ctx);
      const std::vector<double> found = routed(dweight), expected = routed(dweight_apart);
      for (std::int64_t r = 0; r < g.n_routed; ++r) {
        EXPECT_NEAR(found[static_cast<std::size_t>(r)], expected[static_cast<std::size_t>(r)],
                    2 * static_cast<double>(width) * kFloatUnit * get(size, r));
      }

      ops::cuda::grouped_down_backward(gate_up, dweight, dout, weight, gate_up, weight_R, offset, ctx);
      EXPECT_EQ(routed(gate_up), routed(dgate_up)) << "in place";
      EXPECT_EQ(routed(dweight), found) << "in place";
    }
  }
}

// What a row becomes is up to its expert's weight and to itself: not to the rows and experts that a rank holds
// beside it.
TEST_P(CudaLinearTypes, ARowIsTheSameBitsWhateverRowsAndExpertsAreBesideIt) {
  const GroupedCase c{{40, 0, 130, 1}, 0, 40, 136};
  const Grouped g(c);
  const auto in = DeviceTensor::of(g.in, dtype(), ctx), dout = DeviceTensor::of(g.dout, dtype(), ctx),
             weight = DeviceTensor::of(g.weight, dtype(), ctx);
  // Rows from `first` on, of so many experts from `expert` on: outputs and gradients of inputs.
  const auto compute = [&](std::int64_t first, std::int64_t expert, const std::vector<double>& offsets) {
    const auto rows = static_cast<std::int64_t>(offsets.back()), n = std::ssize(offsets) - 1;
    const auto offset = DeviceTensor::of(ints(offsets), ctx);
    const DeviceTensor out({rows, c.outputs}, dtype(), ctx), din({rows, c.inputs}, dtype(), ctx);
    const Tensor weight_n = weight.view().slice(expert, n);
    ops::cuda::grouped_linear_forward(out, in.view().slice(first, rows), weight_n, offset, ctx);
    ops::cuda::grouped_linear_backward_input(din, dout.view().slice(first, rows), weight_n, offset, ctx);
    return std::pair(out.values(), din.values());
  };
  const auto [out, din] = compute(0, 0, values(g.offset));
  const auto part = [](const std::vector<double>& values, std::int64_t first, std::int64_t n) {
    return std::vector<double>(values.begin() + first, values.begin() + first + n);
  };
  for (const std::int64_t expert : {0, 2, 3}) {
    const auto first = static_cast<std::int64_t>(get(g.offset, expert));
    const std::int64_t all = c.counts[static_cast<std::size_t>(expert)];
    for (const std::int64_t rows : {std::int64_t{1}, (all + 1) / 2, all}) {
      const auto [alone, dalone] = compute(first, expert, {0, static_cast<double>(rows)});
      EXPECT_EQ(alone, part(out, first * c.outputs, rows * c.outputs)) << rows << " rows of expert " << expert;
      EXPECT_EQ(dalone, part(din, first * c.inputs, rows * c.inputs)) << rows << " rows of expert " << expert;
    }
  }
}

#ifdef SWITCHYARD_SIMT
TEST_P(CudaLinearTypes, SameBitsInAnyOrderOfBlocks) {
  const GroupedCase c{{40, 0, 130, 1}, 2, 40, 136};
  const Grouped g(c);
  const auto run = [&](simt::BlockOrder order) {
    simt::set_block_order(order);
    const auto in = DeviceTensor::of(g.in, dtype(), ctx), dout = DeviceTensor::of(g.dout, dtype(), ctx),
               weight = DeviceTensor::of(g.weight, dtype(), ctx), offset = DeviceTensor::of(g.offset, ctx);
    const DeviceTensor out({g.n_routed, c.outputs}, dtype(), ctx), din({g.n_routed, c.inputs}, dtype(), ctx);
    const auto dweight = DeviceTensor::of(normal(g.weight.view().shape(), DType::f32, "dweight"), ctx);
    const auto routed = [&](const DeviceTensor& rows) { return rows.view().slice(0, g.n_routed); };
    ops::cuda::grouped_linear_forward(out, routed(in), weight, offset, ctx);
    ops::cuda::grouped_linear_backward_input(din, routed(dout), weight, offset, ctx);
    ops::cuda::grouped_linear_backward_weight(dweight, routed(dout), routed(in), offset, ctx);
    simt::set_block_order(simt::BlockOrder::ascending);
    return std::vector{out.values(), din.values(), dweight.values()};
  };
  EXPECT_EQ(run(simt::BlockOrder::ascending), run(simt::BlockOrder::descending));
}
#endif

INSTANTIATE_TEST_SUITE_P(Types, CudaLinearTypes, ::testing::ValuesIn(settings()),
                         [](const auto& instance) { return std::string(instance.param.name); });

}  // namespace
}  // namespace switchyard::test
