#include "ops/mla.h"

#include <algorithm>

#include "ops/cpu/gemm.h"
#include "ops/cpu/reduce.h"

namespace switchyard::ops {

namespace {

using namespace cpu;

template <class T>
void mla_split_forward_on_cpu(Tensor k_THN, Tensor v_THV, Tensor kv_TM, Tensor k_rope_TR,
                              const MlaWidths& widths) {
  const auto [heads, nope, rope, value] = widths;
  const Rows<T> k_rows(k_THN), v_rows(v_THV), kv_rows(kv_TM), k_rope_rows(k_rope_TR);
#pragma omp parallel for schedule(static) if (k_THN.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < k_THN.rows(); ++t) {
    for (std::int64_t h = 0; h < heads; ++h) {
      const T* kv = kv_rows[t] + h * (nope + value);
      T* k = k_rows[t] + h * (nope + rope);
      std::copy_n(kv, nope, k);
      std::copy_n(k_rope_rows[t], rope, k + nope);
      std::copy_n(kv + nope, value, v_rows[t] + h * value);
    }
  }
}

template <class T>
void mla_split_backward_on_cpu(Tensor dkv_TM, Tensor dk_rope_TR, Tensor dk_THN, Tensor dv_THV,
                               const MlaWidths& widths) {
  const auto [heads, nope, rope, value] = widths;
  const Rows<T> dkv_rows(dkv_TM), dk_rope_rows(dk_rope_TR), dk_rows(dk_THN), dv_rows(dv_THV);
#pragma omp parallel for schedule(static) if (dk_THN.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < dk_THN.rows(); ++t) {
    T* dk_rope = dk_rope_rows[t];
    std::fill_n(dk_rope, rope, T(0));
    for (std::int64_t h = 0; h < heads; ++h) {
      const T* dk = dk_rows[t] + h * (nope + rope);
      T* dkv = dkv_rows[t] + h * (nope + value);
      std::copy_n(dk, nope, dkv);
      std::copy_n(dv_rows[t] + h * value, value, dkv + nope);
      for (std::int64_t i = 0; i < rope; ++i) dk_rope[i] += dk[nope + i];
    }
  }
}

template <class T>
void mla_absorb_query_on_cpu(Tensor q_latent_THL, Tensor q_THN, Tensor kv_b_MC, const MlaWidths& widths) {
  const auto [heads, nope, rope, value] = widths;
  const std::int64_t latent = kv_b_MC.dim(1), n_tokens = q_THN.rows();
  const Rows<T> out_rows(q_latent_THL), q_rows(q_THN), weight_rows(kv_b_MC);
#pragma omp parallel for schedule(static)
  for (std::int64_t h = 0; h < heads; ++h) {
    const std::int64_t from = h * (nope + rope), to = h * (latent + rope);
    gemm<T>(Trans::no, Trans::no, n_tokens, latent, nope, T(1), q_rows[0] + from, q_THN.row_stride(),
            weight_rows[h * (nope + value)], kv_b_MC.row_stride(), T(0), out_rows[0] + to,
            q_latent_THL.row_stride());
    for (std::int64_t t = 0; t < n_tokens; ++t)
      std::copy_n(q_rows[t] + from + nope, rope, out_rows[t] + to + latent);
  }
}

template <class T>
void mla_expand_value_on_cpu(Tensor out_THV, Tensor latent_THC, Tensor kv_b_MC, const MlaWidths& widths) {
  const auto [heads, nope, rope, value] = widths;
  const std::int64_t latent = kv_b_MC.dim(1);
  const Rows<T> out_rows(out_THV), latent_rows(latent_THC), weight_rows(kv_b_MC);
#pragma omp parallel for schedule(static)
  for (std::int64_t h = 0; h < heads; ++h)
    gemm<T>(Trans::no, Trans::yes, out_THV.rows(), value, latent, T(1), latent_rows[0] + h * latent,
            latent_THC.row_stride(), weight_rows[h * (nope + value) + nope], kv_b_MC.row_stride(), T(0),
            out_rows[0] + h * value, out_THV.row_stride());
}

// Keys, values, both in one, and the part of the keys that is rotated; or their gradients.
void check_split(Signature& args, const Tensor& k_THN, const Tensor& v_THV, const Tensor& kv_TM,
                 const Tensor& k_rope_TR, const MlaWidths& widths) {
  const auto [heads, nope, rope, value] = widths;
  const DType real = k_THN.dtype();
  args.bind('R', rope).bind('M', heads * (nope + value));
  args(SY_ARG(kv_TM), real)(SY_ARG(k_rope_TR), real);
  args(SY_ARG(k_THN), Shape{args['T'], heads * (nope + rope)}, real);
  args(SY_ARG(v_THV), Shape{args['T'], heads * value}, real);
}

// Rows of heads on either side of kv_b_MC, `full_width` of it and `latent_extra` beside it wide.
void check_absorbed(Signature& args, const Tensor& latent_THL, std::int64_t latent_extra,
                    const Tensor& full_THN, std::int64_t full_width, const Tensor& kv_b_MC,
                    const MlaWidths& widths) {
  const DType real = kv_b_MC.dtype();
  args.bind('M', widths.heads * (widths.nope + widths.value))(SY_ARG(kv_b_MC), real);
  args(SY_ARG(full_THN), Shape{full_THN.rows(), widths.heads * full_width}, real);
  args(SY_ARG(latent_THL), Shape{full_THN.rows(), widths.heads * (args['C'] + latent_extra)}, real);
}

}  // namespace

void mla_split_forward(Tensor k_THN, Tensor v_THV, Tensor kv_TM, Tensor k_rope_TR, const MlaWidths& widths,
                       Context& ctx) {
  Signature args(ctx);
  check_split(args, k_THN, v_THV, kv_TM, k_rope_TR, widths);
  run<&cuda::mla_split_forward>(ctx, k_THN.dtype(), SY_CPU(mla_split_forward_on_cpu), k_THN, v_THV, kv_TM,
                                k_rope_TR, widths);
}

void mla_split_backward(Tensor dkv_TM, Tensor dk_rope_TR, Tensor dk_THN, Tensor dv_THV, const MlaWidths& widths,
                        Context& ctx) {
  Signature args(ctx);
  check_split(args, dk_THN, dv_THV, dkv_TM, dk_rope_TR, widths);
  run<&cuda::mla_split_backward>(ctx, dk_THN.dtype(), SY_CPU(mla_split_backward_on_cpu), dkv_TM, dk_rope_TR,
                                 dk_THN, dv_THV, widths);
}

void mla_absorb_query(Tensor q_latent_THL, Tensor q_THN, Tensor kv_b_MC, const MlaWidths& widths,
                      Context& ctx) {
  Signature args(ctx);
  check_absorbed(args, q_latent_THL, widths.rope, q_THN, widths.nope + widths.rope, kv_b_MC, widths);
  run<&cuda::mla_absorb_query>(ctx, q_THN.dtype(), SY_CPU(mla_absorb_query_on_cpu), q_latent_THL, q_THN,
                               kv_b_MC, widths);
}

void mla_expand_value(Tensor out_THV, Tensor latent_THC, Tensor kv_b_MC, const MlaWidths& widths,
                      Context& ctx) {
  Signature args(ctx);
  check_absorbed(args, latent_THC, 0, out_THV, widths.value, kv_b_MC, widths);
  run<&cuda::mla_expand_value>(ctx, out_THV.dtype(), SY_CPU(mla_expand_value_on_cpu), out_THV, latent_THC,
                               kv_b_MC, widths);
}

}  // namespace switchyard::ops
