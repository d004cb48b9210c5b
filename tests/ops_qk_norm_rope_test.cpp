
#include <gtest/gtest.h>

#include <cmath>

#include "gradient_check.h"
#include "ops/elementwise.h"
#include "ops/norm.h"
#include "ops/rope.h"
#include "tensors.h"
#include "threads.h"

namespace switchyard::test {
namespace {

constexpr double kEps = 1e-5;

struct Sizes {
  std::int64_t tokens, seq_len, q_heads, k_heads, pairs;
  std::int64_t width() const { return 2 * pairs; }
  std::int64_t columns() const { return (q_heads + 2 * k_heads) * width(); }  // q, k and v
};
// One pair, a last sequence that is not whole, widths on both sides of the sums' lanes, more rows than a block,
// and usual heads, for which the loops have constant lengths.
const Sizes kSizes[] = {{1, 1, 1, 1, 1},    {5, 2, 3, 1, 3},  {34, 17, 4, 2, 8}, {70, 70, 2, 2, 33},
                        {33, 16, 3, 1, 16}, {6, 3, 2, 1, 32}, {5, 5, 1, 2, 64}};

struct Pair {
  OwnedTensor q, k;
  operator ops::QueryKey() const { return {q, k}; }
};

// The inputs of a call, in strided rows, and its outputs, poisoned; the weights' gradients begin with values.
struct Call {
  Sizes s;
  OwnedTensor qkv, cos, sin, dqkv;
  Pair weight, out, rstd, dout, dweight;

  Call(const Sizes& sizes, DType dtype)
      : s(sizes),
        qkv(normal_strided(s.tokens, s.columns(), dtype, "qkv")),
        cos(normal({s.seq_len + 1, s.pairs}, dtype, "cos")),
        sin(normal({s.seq_len + 1, s.pairs}, dtype, "sin")),
        dqkv(OwnedTensor::strided(s.tokens, s.columns(), dtype, 2)),
        weight{normal({s.width()}, dtype, "q weight", 0.3, 1.0),
               normal({s.width()}, dtype, "k weight", 0.3, 1.0)},
        out{OwnedTensor::strided(s.tokens, s.q_heads * s.width(), dtype, 3),
            OwnedTensor::strided(s.tokens, s.k_heads * s.width(), dtype, 4)},
        rstd{OwnedTensor({s.tokens, s.q_heads}, dtype), OwnedTensor({s.tokens, s.k_heads}, dtype)},
        dout{normal_strided(s.tokens, s.q_heads * s.width(), dtype, "dq", 1.0, 1),
             normal_strided(s.tokens, s.k_heads * s.width(), dtype, "dk", 1.0, 6)},
        dweight{normal({s.width()}, dtype, "q dweight"), normal({s.width()}, dtype, "k dweight")} {}

  void forward(Context& ctx) const {
    ops::qk_norm_rope_forward(out, rstd, qkv, weight, cos, sin, s.seq_len, kEps, ctx);
  }
  void backward(Context& ctx) const {
    ops::qk_norm_rope_backward(dqkv, dweight, dout, qkv, rstd, weight, cos, sin, s.seq_len, ctx);
  }
  Tensor q_columns(const Tensor& of_all) const { return of_all.columns(0, s.q_heads * s.width()); }
  Tensor k_columns(const Tensor& of_all) const {
    return of_all.columns(s.q_heads * s.width(), s.k_heads * s.width());
  }
  Tensor v_columns(const Tensor& of_all) const {
    return of_all.columns((s.q_heads + s.k_heads) * s.width(), s.k_heads * s.width());
  }
};

TEST(QkNormRope, OneTokenByHand) {
  Context ctx;
  Call call({1, 1, 1, 1, 1}, DType::f64);
  fill(call.qkv, {3, 4, 6, 8, 0, 0});
  fill(call.weight.q, {2, 0.5});
  fill(call.weight.k, {1, 1});
  fill(call.cos, {0.6, 9});
  fill(call.sin, {0.8, 9});
  ops::qk_norm_rope_forward(call.out, call.rstd, call.qkv, call.weight, call.cos, call.sin, 1, 0.0, ctx);
  const double r = 1 / std::sqrt(12.5);  // the mean of 9 and 16; k is twice q
  EXPECT_TRUE(all_near(values(call.rstd.q), {r}, 1e-15, 0));
  EXPECT_TRUE(all_near(values(call.rstd.k), {r / 2}, 1e-15, 0));
  // (6r, 2r) and (3r, 4r), turned
  EXPECT_TRUE(all_near(values(call.out.q), {(6 * 0.6 - 2 * 0.8) * r, (2 * 0.6 + 6 * 0.8) * r}, 1e-15, 0));
  EXPECT_TRUE(all_near(values(call.out.k), {(3 * 0.6 - 4 * 0.8) * r, (4 * 0.6 + 3 * 0.8) * r}, 1e-14, 0));

  fill(call.dout.q, {0.6, 0.8});  // turned back: (1, 0)
  fill(call.dout.k, {0, 0});
  fill(call.dweight.q, {30, 40});
  call.backward(ctx);
  // g = (2, 0), x = (3r, 4r), mean(g x) = 3r: dq = r (2 - 9 r^2, -12 r^2) = r (1.28, -0.96).
  EXPECT_TRUE(all_near(values(call.q_columns(call.dqkv)), {1.28 * r, -0.96 * r}, 1e-14, 0));
  EXPECT_TRUE(all_near(values(call.k_columns(call.dqkv)), {0, 0}, 0, 0));
  EXPECT_TRUE(all_near(values(call.dweight.q), {30 + 3 * r, 40}, 1e-14, 0));
}

// The four passes that it stands for.
TEST(QkNormRope, EqualsNormThenRotation) {
  for (const Sizes& s : kSizes) {
    for (DType dtype : {DType::f32, DType::f64}) {
      SCOPED_TRACE(::testing::Message()
                   << s.tokens << " tokens, width " << s.width() << ", " << name_of(dtype));
      Context ctx;
      ctx.scratch.set_poison(true);
      const Call fused(s, dtype), apart(s, dtype);
      const Tensor columns[] = {apart.q_columns(apart.qkv), apart.k_columns(apart.qkv)};
      const Tensor dcolumns[] = {apart.q_columns(apart.dqkv), apart.k_columns(apart.dqkv)};
      for (Tensor ops::QueryKey::*side : {&ops::QueryKey::q, &ops::QueryKey::k}) {
        const auto of = [&](const ops::QueryKey& pair) { return pair.*side; };
        const int i = side == &ops::QueryKey::q ? 0 : 1;
        ops::rmsnorm_forward(of(apart.out), of(apart.rstd), columns[i], of(apart.weight), kEps, ctx);
        ops::rope_forward(of(apart.out), apart.cos, apart.sin, s.seq_len, {s.width()}, ctx);
        ops::rope_backward(of(apart.dout), apart.cos, apart.sin, s.seq_len, {s.width()}, ctx);
        ops::fill_zero(dcolumns[i], ctx);
        ops::rmsnorm_backward(dcolumns[i], of(apart.dweight), of(apart.dout), columns[i], of(apart.rstd),
                              of(apart.weight), ctx);
      }
      fused.forward(ctx);
      fused.backward(ctx);
      // The same operations in the same order, of which a compiler may fuse products and sums in one way here
      // and in another there, so that each is rounded once less. Terms are of order one to ten, weights'
      // gradients sums of up to 140 such terms.
      const double unit = dtype == DType::f32 ? 0x1p-24 : 0x1p-53;
      EXPECT_TRUE(all_near(values(fused.rstd.q), values(apart.rstd.q), 8 * unit, 0));
      EXPECT_TRUE(all_near(values(fused.rstd.k), values(apart.rstd.k), 8 * unit, 0));
      EXPECT_TRUE(all_near(values(fused.out.q), values(apart.out.q), 8 * unit, 50 * unit));
      EXPECT_TRUE(all_near(values(fused.out.k), values(apart.out.k), 8 * unit, 50 * unit));
      EXPECT_TRUE(all_near(values(fused.q_columns(fused.dqkv)), values(dcolumns[0]), 8 * unit, 200 * unit));
      EXPECT_TRUE(all_near(values(fused.k_columns(fused.dqkv)), values(dcolumns[1]), 8 * unit, 200 * unit));
      EXPECT_TRUE(all_near(values(fused.dweight.q), values(apart.dweight.q), 8 * unit, 2000 * unit));
      EXPECT_TRUE(all_near(values(fused.dweight.k), values(apart.dweight.k), 8 * unit, 2000 * unit));
    }
  }
}

TEST(QkNormRope, GradientMatchesFiniteDifferences) {
  for (const Sizes& s : kSizes) {
    Context ctx;
    ctx.scratch.set_poison(true);
    const Call call(s, DType::f64);
    const auto dweight_q = values(call.dweight.q), dweight_k = values(call.dweight.k);
    call.forward(ctx);
    call.backward(ctx);
    const auto loss = [&] {
      call.forward(ctx);
      return dot(call.dout.q, call.out.q) + dot(call.dout.k, call.out.k);
    };
    // As for RMSNorm alone: rounding of a loss of up to 19,000 terms over a step of 1e-5, and narrow heads'
    // third derivatives.
    const GradientTolerance tolerance{.relative = 1e-5, .absolute = 3e-7, .max_elements = 300};
    EXPECT_TRUE(gradient_matches(call.q_columns(call.qkv), values(call.q_columns(call.dqkv)), loss, tolerance));
    EXPECT_TRUE(gradient_matches(call.k_columns(call.qkv), values(call.k_columns(call.dqkv)), loss, tolerance));
    EXPECT_TRUE(
        gradient_matches(call.weight.q, difference(values(call.dweight.q), dweight_q), loss, tolerance));
    EXPECT_TRUE(
        gradient_matches(call.weight.k, difference(values(call.dweight.k), dweight_k), loss, tolerance));
  }
}

TEST(QkNormRope, LeavesValuesAndMarginsAlone) {
  Context ctx;
  const Call call(kSizes[2], DType::f32);
  call.forward(ctx);
  call.backward(ctx);
  EXPECT_TRUE(call.out.q.margins_untouched() && call.out.k.margins_untouched() &&
              call.dqkv.margins_untouched());
  for (double value : values(call.v_columns(call.dqkv))) EXPECT_TRUE(std::isnan(value));
}

TEST(QkNormRope, SameBitsOnAnyThreadCount) {
  const auto result = [](auto&& pick) {
    expect_same_bits_on_any_thread_count([&] {
      Context ctx;
      Call call({130, 65, 3, 1, 33}, DType::f32);
      for (std::int64_t i = 0; i < call.dqkv.numel(); ++i) set(call.dqkv, i, 0);  // v's columns
      call.forward(ctx);
      call.backward(ctx);
      return std::move(pick(call));
    });
  };
  result([](Call& call) -> OwnedTensor& { return call.out.q; });
  result([](Call& call) -> OwnedTensor& { return call.dqkv; });
  result([](Call& call) -> OwnedTensor& { return call.dweight.q; });
}

TEST(QkNormRope, RefusesOtherShapesAndDtypes) {
  Context ctx;
  const Call call({4, 2, 2, 1, 3}, DType::f32), wider({4, 2, 2, 1, 4}, DType::f32),
      f64({4, 2, 2, 1, 3}, DType::f64);
  const auto forward = [&](const ops::QueryKey& out, const Tensor& qkv, const ops::QueryKey& weight,
                           const Tensor& cos, std::int64_t seq_len) {
    ops::qk_norm_rope_forward(out, call.rstd, qkv, weight, cos, call.sin, seq_len, kEps, ctx);
  };
  EXPECT_NO_THROW(forward(call.out, call.qkv, call.weight, call.cos, 2));
  EXPECT_THROW(forward(wider.out, call.qkv, call.weight, call.cos, 2), std::logic_error);
  EXPECT_THROW(forward(call.out, call.qkv.view().columns(0, 17), call.weight, call.cos, 2), std::logic_error);
  EXPECT_THROW(forward(call.out, f64.qkv, call.weight, call.cos, 2), std::logic_error);
  EXPECT_THROW(forward(call.out, call.qkv, wider.weight, call.cos, 2), std::logic_error);
  EXPECT_THROW(forward(call.out, call.qkv, call.weight, wider.cos, 2), std::logic_error);
  EXPECT_THROW(forward(call.out, call.qkv, call.weight, call.cos, 4), std::logic_error);
}

}  // namespace
}  // namespace switchyard::test
