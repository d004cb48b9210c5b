
#include <gtest/gtest.h>

#include <cmath>

#include "cuda_support.h"
#include "ops/elementwise.h"
#include "ops/norm.h"
#include "ops/rope.h"

#ifdef SWITCHYARD_SIMT
#include "engine.h"
#endif

namespace switchyard::test {
namespace {

constexpr double kEps = 1e-5;

struct Sizes {
  std::int64_t tokens, seq_len, q_heads, k_heads, pairs, margin;
  std::int64_t width() const { return 2 * pairs; }
  std::int64_t q_width() const { return q_heads * width(); }
  std::int64_t k_width() const { return k_heads * width(); }
  std::int64_t columns() const { return q_width() + 2 * k_width(); }  // q, k and v
};
std::ostream& operator<<(std::ostream& to, const Sizes& s) {
  return to << s.tokens << " tokens in sequences of " << s.seq_len << ", " << s.q_heads << "/" << s.k_heads
            << " heads of " << s.width() << ", margin " << s.margin;
}
// No token, one pair, widths that are no packs, a last sequence that is not whole, rows that begin beside
// packs; heads of packs on 2 to 32 lanes, of 96 with idle lanes, and one too wide for a warp's packs; several
// blocks.
const Sizes kSizes[] = {{0, 1, 1, 1, 4, 0},    {1, 1, 1, 1, 1, 0},    {5, 2, 3, 1, 5, 3},
                        {34, 17, 4, 2, 16, 8}, {34, 17, 4, 2, 16, 3}, {9, 4, 2, 1, 24, 8},
                        {7, 7, 3, 1, 48, 0},   {11, 5, 4, 2, 64, 8},  {300, 100, 4, 2, 8, 0},
                        {5, 3, 2, 1, 128, 16}, {3, 3, 1, 1, 320, 8},  {3, 2, 2, 2, 384, 0}};

struct DevicePair {
  DeviceTensor q, k;
  operator ops::QueryKey() const { return {q, k}; }
};
struct HostPair {
  OwnedTensor q, k;
  operator ops::QueryKey() const { return {q, k}; }
};
HostPair as_f64(const DevicePair& pair) { return {pair.q.as_f64(), pair.k.as_f64()}; }

// A call's inputs on the device, as `dtype` rounds them, and its outputs there.
struct Call {
  Sizes s;
  DeviceContext ctx;
  DeviceTensor qkv, cos, sin, dqkv;
  DevicePair weight, out, rstd, dout, dweight;

  Call(const Sizes& sizes, DType dtype)
      : s(sizes),
        qkv(matrix(s.columns(), "qkv", dtype)),
        cos(DeviceTensor::of(normal({s.seq_len + 1, s.pairs}, DType::f64, "cos"), DType::f32, ctx)),
        sin(DeviceTensor::of(normal({s.seq_len + 1, s.pairs}, DType::f64, "sin"), DType::f32, ctx)),
        dqkv(DeviceTensor::strided(s.tokens, s.columns(), dtype, ctx, s.margin)),
        weight{vector("q weight", dtype, 0.3, 1), vector("k weight", dtype, 0.3, 1)},
        out{DeviceTensor::strided(s.tokens, s.q_width(), dtype, ctx, s.margin),
            DeviceTensor::strided(s.tokens, s.k_width(), dtype, ctx, s.margin)},
        rstd{DeviceTensor({s.tokens, s.q_heads}, DType::f32, ctx),
             DeviceTensor({s.tokens, s.k_heads}, DType::f32, ctx)},
        dout{matrix(s.q_width(), "dq", dtype), matrix(s.k_width(), "dk", dtype)},
        dweight{vector("q dweight", DType::f32, 1, 0), vector("k dweight", DType::f32, 1, 0)} {}

  DeviceTensor matrix(std::int64_t columns, const char* name, DType dtype) const {
    return DeviceTensor::of(normal({s.tokens, columns}, DType::f64, name), dtype, ctx, s.margin);
  }
  DeviceTensor vector(const char* name, DType dtype, double scale, double mean) const {
    return DeviceTensor::of(normal({s.width()}, DType::f64, name, scale, mean), dtype, ctx);
  }
  void forward() { ops::cuda::qk_norm_rope_forward(out, rstd, qkv, weight, cos, sin, s.seq_len, kEps, ctx); }
  void backward() {
    ops::cuda::qk_norm_rope_backward(dqkv, dweight, dout, qkv, rstd, weight, cos, sin, s.seq_len, ctx);
  }
};

// The columns of q and k, without those of v.
std::vector<double> of_heads(const Sizes& s, const std::vector<double>& dqkv) {
  std::vector<double> result;
  for (std::size_t i = 0; i < dqkv.size(); ++i) {
    if (static_cast<std::int64_t>(i) % s.columns() < s.q_width() + s.k_width()) result.push_back(dqkv[i]);
  }
  return result;
}

class CudaQkNormRope : public ::testing::TestWithParam<DType> {};

TEST_P(CudaQkNormRope, EqualsTheCpu) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(::testing::Message() << s);
    Call x(s, GetParam());
    Context host_ctx;
    const OwnedTensor qkv = x.qkv.as_f64(), cos = x.cos.as_f64(), sin = x.sin.as_f64(),
                      dqkv(qkv.view().shape(), DType::f64);
    const HostPair weight = as_f64(x.weight), out = as_f64(x.out), rstd = as_f64(x.rstd), dout = as_f64(x.dout),
                   dweight = as_f64(x.dweight);
    ops::qk_norm_rope_forward(out, rstd, qkv, weight, cos, sin, s.seq_len, kEps, host_ctx);
    ops::qk_norm_rope_backward(dqkv, dweight, dout, qkv, rstd, weight, cos, sin, s.seq_len, host_ctx);
    x.forward();
    x.backward();

    // Some ten roundings of 6e-8, of terms of up to about 30 (a normed value, a weight and an angle's cosine of
    // a normal distribution each) that may cancel; bf16 rounds the result once, to 8 bits.
    const double relative = GetParam() == DType::bf16 ? 0x1p-8 : 0;
    EXPECT_TRUE(all_near(x.rstd.q.values(), values(rstd.q), 1e-6, 0));
    EXPECT_TRUE(all_near(x.rstd.k.values(), values(rstd.k), 1e-6, 0));
    EXPECT_TRUE(all_near(x.out.q.values(), values(out.q), relative, 1e-5));
    EXPECT_TRUE(all_near(x.out.k.values(), values(out.k), relative, 1e-5));
    // A head of one pair can be small and its rstd large: the sum is of terms of that size.
    EXPECT_TRUE(all_near(of_heads(s, x.dqkv.values()), of_heads(s, values(dqkv)), relative, 3e-5));
    EXPECT_TRUE(all_near(x.dweight.q.values(), values(dweight.q), 1e-5, 2e-4));
    EXPECT_TRUE(all_near(x.dweight.k.values(), values(dweight.k), 1e-5, 2e-4));
    EXPECT_TRUE(x.out.q.margins_untouched() && x.out.k.margins_untouched() && x.dqkv.margins_untouched());
    const std::vector<double> all = x.dqkv.values();
    for (std::int64_t i = 0; i < s.tokens * s.columns(); ++i) {
      const bool of_v = i % s.columns() >= s.q_width() + s.k_width();
      ASSERT_EQ(std::isnan(all[static_cast<std::size_t>(i)]), of_v) << i;
    }
  }
}

// The four kernels that it stands for.
TEST_P(CudaQkNormRope, EqualsNormThenRotation) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(::testing::Message() << s);
    const bool bf16 = GetParam() == DType::bf16;
    Call fused(s, GetParam()), apart(s, GetParam());
    fused.forward();
    fused.backward();
    const ops::QueryKey out = apart.out, rstd = apart.rstd, weight = apart.weight, dout = apart.dout,
                        dweight = apart.dweight;
    const auto columns = [&](const Tensor& of_all) {
      return ops::QueryKey{of_all.columns(0, s.q_width()), of_all.columns(s.q_width(), s.k_width())};
    };
    const ops::QueryKey in = columns(apart.qkv), din = columns(apart.dqkv);
    for (Tensor ops::QueryKey::*side : {&ops::QueryKey::q, &ops::QueryKey::k}) {
      ops::cuda::rmsnorm_forward(out.*side, rstd.*side, in.*side, weight.*side, kEps, apart.ctx);
      ops::cuda::rope_forward(out.*side, apart.cos, apart.sin, s.seq_len, {s.width()}, apart.ctx);
      ops::cuda::rope_backward(dout.*side, apart.cos, apart.sin, s.seq_len, {s.width()}, apart.ctx);
      ops::cuda::fill_zero(din.*side, apart.ctx);
      ops::cuda::rmsnorm_backward(din.*side, dweight.*side, dout.*side, in.*side, rstd.*side, weight.*side,
                                  apart.ctx);
    }
    // f32: sums over a head have another order. bf16: apart, what passes from one to the other is rounded to 8
    // bits, and then added to or taken from another such: terms of up to about 30.
    const double relative = bf16 ? 0x1p-8 : 0, absolute = bf16 ? 0x1p-4 : 1e-5;
    EXPECT_TRUE(all_near(fused.rstd.q.values(), apart.rstd.q.values(), 1e-6, 0));
    EXPECT_TRUE(all_near(fused.rstd.k.values(), apart.rstd.k.values(), 1e-6, 0));
    EXPECT_TRUE(all_near(fused.out.q.values(), apart.out.q.values(), relative, absolute));
    EXPECT_TRUE(all_near(fused.out.k.values(), apart.out.k.values(), relative, absolute));
    EXPECT_TRUE(
        all_near(of_heads(s, fused.dqkv.values()), of_heads(s, apart.dqkv.values()), relative, 3 * absolute));
    EXPECT_TRUE(all_near(fused.dweight.q.values(), apart.dweight.q.values(), 1e-5, bf16 ? 0.3 : 3e-4));
    EXPECT_TRUE(all_near(fused.dweight.k.values(), apart.dweight.k.values(), 1e-5, bf16 ? 0.3 : 3e-4));
  }
}

#ifdef SWITCHYARD_SIMT
TEST_P(CudaQkNormRope, SameBitsInAnyOrderOfBlocks) {
  std::vector<std::vector<double>> results[2];
  for (simt::BlockOrder order : {simt::BlockOrder::ascending, simt::BlockOrder::descending}) {
    simt::set_block_order(order);
    Call x({300, 100, 4, 2, 8, 0}, GetParam());
    x.forward();
    x.backward();
    for (const DeviceTensor* tensor : {&x.out.q, &x.out.k, &x.rstd.q, &x.dweight.q, &x.dweight.k})
      results[static_cast<int>(order)].push_back(tensor->values());
    results[static_cast<int>(order)].push_back(of_heads(x.s, x.dqkv.values()));
  }
  simt::set_block_order(simt::BlockOrder::ascending);
  EXPECT_EQ(results[0], results[1]);
}
#endif

INSTANTIATE_TEST_SUITE_P(Types, CudaQkNormRope, ::testing::Values(DType::f32, DType::bf16),
                         [](const auto& instance) { return name_of(instance.param); });

}  // namespace
}  // namespace switchyard::test
