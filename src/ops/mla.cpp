#include "ops/mla.h"

#include "cpu/mla.h"
#include "cuda/mla.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

namespace {

void check_widths(const Tensor& k_THN, const Tensor& v_THV, const Tensor& kv_TM, const Tensor& k_rope_TR,
                  const MlaWidths& widths) {
  const std::int64_t n_tokens = k_THN.rows();
  check_shape(k_THN, Shape{n_tokens, widths.heads * (widths.nope + widths.rope)}, "k_THN");
  check_shape(v_THV, Shape{n_tokens, widths.heads * widths.value}, "v_THV");
  check_shape(kv_TM, Shape{n_tokens, widths.heads * (widths.nope + widths.value)}, "kv_TM");
  check_shape(k_rope_TR, Shape{n_tokens, widths.rope}, "k_rope_TR");
  check_dtype(v_THV, k_THN.dtype(), "v_THV");
  check_dtype(kv_TM, k_THN.dtype(), "kv_TM");
  check_dtype(k_rope_TR, k_THN.dtype(), "k_rope_TR");
}

}  // namespace

void mla_split_forward(Tensor k_THN, Tensor v_THV, Tensor kv_TM, Tensor k_rope_TR, const MlaWidths& widths,
                       Context& ctx) {
  check_widths(k_THN, v_THV, kv_TM, k_rope_TR, widths);
  SY_ON_CUDA(ctx, cuda::mla_split_forward(k_THN, v_THV, kv_TM, k_rope_TR, widths, ctx));
  with_scalar(k_THN.dtype(),
              [&]<class T>() { cpu::mla_split_forward<T>(k_THN, v_THV, kv_TM, k_rope_TR, widths); });
}

void mla_split_backward(Tensor dkv_TM, Tensor dk_rope_TR, Tensor dk_THN, Tensor dv_THV, const MlaWidths& widths,
                        Context& ctx) {
  check_widths(dk_THN, dv_THV, dkv_TM, dk_rope_TR, widths);
  SY_ON_CUDA(ctx, cuda::mla_split_backward(dkv_TM, dk_rope_TR, dk_THN, dv_THV, widths, ctx));
  with_scalar(dk_THN.dtype(),
              [&]<class T>() { cpu::mla_split_backward<T>(dkv_TM, dk_rope_TR, dk_THN, dv_THV, widths); });
}

namespace {

// `latent` and `full` are the widths of a head on either side of kv_b_MC.
void check_absorbed(const Tensor& latent, std::int64_t latent_extra, const Tensor& full,
                    std::int64_t full_width, const Tensor& kv_b_MC, const MlaWidths& widths) {
  check_shape(kv_b_MC, Shape{widths.heads * (widths.nope + widths.value), kv_b_MC.dim(1)}, "kv_b_MC");
  check_shape(full, Shape{full.rows(), widths.heads * full_width}, "rows of full heads");
  check_shape(latent, Shape{full.rows(), widths.heads * (kv_b_MC.dim(1) + latent_extra)},
              "rows of latent heads");
  check_dtype(latent, kv_b_MC.dtype(), "rows of latent heads");
  check_dtype(full, kv_b_MC.dtype(), "rows of full heads");
}

}  // namespace

void mla_absorb_query(Tensor q_latent_THL, Tensor q_THN, Tensor kv_b_MC, const MlaWidths& widths,
                      Context& ctx) {
  check_absorbed(q_latent_THL, widths.rope, q_THN, widths.nope + widths.rope, kv_b_MC, widths);
  SY_ON_CUDA(ctx, cuda::mla_absorb_query(q_latent_THL, q_THN, kv_b_MC, widths, ctx));
  with_scalar(q_THN.dtype(),
              [&]<class T>() { cpu::mla_absorb_query<T>(q_latent_THL, q_THN, kv_b_MC, widths); });
}

void mla_expand_value(Tensor out_THV, Tensor latent_THC, Tensor kv_b_MC, const MlaWidths& widths,
                      Context& ctx) {
  check_absorbed(latent_THC, 0, out_THV, widths.value, kv_b_MC, widths);
  SY_ON_CUDA(ctx, cuda::mla_expand_value(out_THV, latent_THC, kv_b_MC, widths, ctx));
  with_scalar(out_THV.dtype(),
              [&]<class T>() { cpu::mla_expand_value<T>(out_THV, latent_THC, kv_b_MC, widths); });
}

}  // namespace switchyard::ops
