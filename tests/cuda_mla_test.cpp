#include "ops/mla.h"

#include <gtest/gtest.h>

#include "cuda_support.h"

namespace switchyard::test {
namespace {

struct Case {
  std::int64_t tokens;
  ops::MlaWidths widths;
  std::int64_t latent, margin;  // margin: of the matrices whose rows may be strided
};
// One of everything, odd widths, packs with and without margins, packs of some widths only, a latent that fills
// more than one block, and tokens that fill more than one.
const Case kCases[] = {{1, {1, 1, 2, 1}, 1, 0},       {7, {4, 5, 4, 7}, 9, 3},    {70, {2, 8, 16, 24}, 40, 8},
                       {5, {3, 16, 8, 12}, 264, 0},   {9, {3, 9, 16, 8}, 130, 5}, {300, {2, 4, 2, 4}, 8, 0},
                       {1, {2, 136, 64, 128}, 48, 0}, {0, {2, 8, 8, 8}, 8, 0}};

class CudaMla : public ::testing::TestWithParam<DType> {
 protected:
  DeviceTensor input(std::int64_t rows, std::int64_t columns, const char* name, std::int64_t margin = 0) const {
    return DeviceTensor::of(normal({rows, columns}, DType::f64, name), GetParam(), ctx_, margin);
  }
  DeviceTensor output(std::int64_t rows, std::int64_t columns, std::int64_t margin = 0) const {
    return margin > 0 ? DeviceTensor::strided(rows, columns, GetParam(), ctx_, margin)
                      : DeviceTensor({rows, columns}, GetParam(), ctx_);
  }
  // A sum, in f32, is rounded to bf16 once.
  double relative() const { return GetParam() == DType::bf16 ? 0x1p-8 : 0; }

  DeviceContext ctx_;
  Context host_ctx_;
};

TEST_P(CudaMla, SplitEqualsTheCpu) {
  for (const auto& [tokens, w, latent, margin] : kCases) {
    SCOPED_TRACE(::testing::Message() << tokens << " tokens, " << w.heads << " heads, latent " << latent);
    const std::int64_t kv_width = w.heads * (w.nope + w.value), k_width = w.heads * (w.nope + w.rope),
                       v_width = w.heads * w.value;
    const auto kv = input(tokens, kv_width, "kv", margin), k_rope = input(tokens, w.rope, "k_rope", margin);
    const auto dk = input(tokens, k_width, "dk", margin), dv = input(tokens, v_width, "dv", margin);
    const auto k = output(tokens, k_width, margin), v = output(tokens, v_width, margin),
               dkv = output(tokens, kv_width, margin), dk_rope = output(tokens, w.rope, margin);
    const OwnedTensor k64(k.view().shape(), DType::f64), v64(v.view().shape(), DType::f64),
        dkv64(kv.view().shape(), DType::f64), dk_rope64(k_rope.view().shape(), DType::f64);
    ops::mla_split_forward(k64, v64, kv.as_f64(), k_rope.as_f64(), w, host_ctx_);
    ops::mla_split_backward(dkv64, dk_rope64, dk.as_f64(), dv.as_f64(), w, host_ctx_);
    ops::cuda::mla_split_forward(k, v, kv, k_rope, w, ctx_);
    ops::cuda::mla_split_backward(dkv, dk_rope, dk, dv, w, ctx_);
    EXPECT_EQ(k.values(), values(k64));  // moved, not computed
    EXPECT_EQ(v.values(), values(v64));
    EXPECT_EQ(dkv.values(), values(dkv64));
    EXPECT_TRUE(all_near(dk_rope.values(), values(dk_rope64), relative(), 2e-6));  // a sum of up to four
    for (const DeviceTensor* out : {&k, &v, &dkv, &dk_rope}) EXPECT_TRUE(out->margins_untouched());
  }
}

TEST_P(CudaMla, AbsorbedProductsEqualTheCpu) {
  for (const auto& [tokens, w, latent, margin] : kCases) {
    SCOPED_TRACE(::testing::Message() << tokens << " tokens, " << w.heads << " heads, latent " << latent);
    const auto kv_b = input(w.heads * (w.nope + w.value), latent, "kv_b");
    const auto q = input(tokens, w.heads * (w.nope + w.rope), "q", margin),
               mix = input(tokens, w.heads * latent, "mix", margin);
    const auto q_latent = output(tokens, w.heads * (latent + w.rope), margin),
               out = output(tokens, w.heads * w.value, margin);
    const OwnedTensor q_latent64(q_latent.view().shape(), DType::f64), out64(out.view().shape(), DType::f64);
    if (tokens > 0) {
      ops::mla_absorb_query(q_latent64, q.as_f64(), kv_b.as_f64(), w, host_ctx_);
      ops::mla_expand_value(out64, mix.as_f64(), kv_b.as_f64(), w, host_ctx_);
    }
    ops::cuda::mla_absorb_query(q_latent, q, kv_b, w, ctx_);
    ops::cuda::mla_expand_value(out, mix, kv_b, w, ctx_);
    // Sums of up to 264 products of order one and of both signs, each rounded to 6e-8.
    EXPECT_TRUE(all_near(q_latent.values(), values(q_latent64), relative(), 2e-5));
    EXPECT_TRUE(all_near(out.values(), values(out64), relative(), 2e-5));
    EXPECT_TRUE(q_latent.margins_untouched());
    EXPECT_TRUE(out.margins_untouched());
  }
}

INSTANTIATE_TEST_SUITE_P(Types, CudaMla, ::testing::Values(DType::f32, DType::bf16),
                         [](const auto& instance) { return name_of(instance.param); });

}  // namespace
}  // namespace switchyard::test
