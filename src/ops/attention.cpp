#include "ops/attention.h"

#include "cpu/attention.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

namespace {

void check_sizes(const Tensor& q_THN, const Tensor& k_TGN, const Tensor& v_TGN, const Tensor& kv_begin_T,
                 const AttentionShape& shape) {
  const std::int64_t n_tokens = shape.n_seq * shape.seq_len;
  SY_CHECK(shape.n_kv_heads > 0 && shape.n_heads % shape.n_kv_heads == 0, "{} heads do not divide over {}",
           shape.n_heads, shape.n_kv_heads);
  check_shape(q_THN, Shape{n_tokens, shape.n_heads * shape.head_dim}, "q_THN");
  check_shape(k_TGN, Shape{n_tokens, shape.n_kv_heads * shape.head_dim}, "k_TGN");
  check_shape(v_TGN, k_TGN.shape(), "v_TGN");
  check_shape(kv_begin_T, Shape{n_tokens}, "kv_begin_T");
}

}  // namespace

void attention_forward(Tensor out_THN, Tensor lse_TH, Tensor q_THN, Tensor k_TGN, Tensor v_TGN,
                       Tensor kv_begin_T, const AttentionShape& shape, Context& ctx) {
  check_sizes(q_THN, k_TGN, v_TGN, kv_begin_T, shape);
  check_shape(out_THN, q_THN.shape(), "out_THN");
  check_shape(lse_TH, Shape{q_THN.rows(), shape.n_heads}, "lse_TH");
  with_scalar(out_THN.dtype(), [&]<class T>() {
    cpu::attention_forward<T>(out_THN, lse_TH, q_THN, k_TGN, v_TGN, kv_begin_T, shape, ctx);
  });
}

void attention_backward(Tensor dq_THN, Tensor dk_TGN, Tensor dv_TGN, Tensor dout_THN, Tensor out_THN,
                        Tensor lse_TH, Tensor q_THN, Tensor k_TGN, Tensor v_TGN, Tensor kv_begin_T,
                        const AttentionShape& shape, Context& ctx) {
  check_sizes(q_THN, k_TGN, v_TGN, kv_begin_T, shape);
  check_shape(dq_THN, q_THN.shape(), "dq_THN");
  check_shape(dk_TGN, k_TGN.shape(), "dk_TGN");
  check_shape(dv_TGN, v_TGN.shape(), "dv_TGN");
  check_shape(dout_THN, q_THN.shape(), "dout_THN");
  check_shape(out_THN, q_THN.shape(), "out_THN");
  check_shape(lse_TH, Shape{q_THN.rows(), shape.n_heads}, "lse_TH");
  with_scalar(dq_THN.dtype(), [&]<class T>() {
    cpu::attention_backward<T>(dq_THN, dk_TGN, dv_TGN, dout_THN, out_THN, lse_TH, q_THN, k_TGN, v_TGN,
                               kv_begin_T, shape, ctx);
  });
}

}  // namespace switchyard::ops
