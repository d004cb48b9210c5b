#include "ops/mla.h"

#include "cpu/mla.h"
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
                       Context&) {
  check_widths(k_THN, v_THV, kv_TM, k_rope_TR, widths);
  with_scalar(k_THN.dtype(),
              [&]<class T>() { cpu::mla_split_forward<T>(k_THN, v_THV, kv_TM, k_rope_TR, widths); });
}

void mla_split_backward(Tensor dkv_TM, Tensor dk_rope_TR, Tensor dk_THN, Tensor dv_THV, const MlaWidths& widths,
                        Context&) {
  check_widths(dk_THN, dv_THV, dkv_TM, dk_rope_TR, widths);
  with_scalar(dk_THN.dtype(),
              [&]<class T>() { cpu::mla_split_backward<T>(dkv_TM, dk_rope_TR, dk_THN, dv_THV, widths); });
}

}  // namespace switchyard::ops
