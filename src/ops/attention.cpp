#include "ops/attention.h"

#include "cpu/attention.h"
#include "cuda/attention.h"
#include "cuda/attention_cudnn.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

namespace {

void check_sizes(const Tensor& q_THN, const Tensor& k_TGN, const Tensor& v_TGM, const Tensor& kv_begin_T,
                 const AttentionShape& shape) {
  const std::int64_t n_tokens = shape.n_seq * shape.seq_len;
  SY_CHECK(shape.n_kv_heads > 0 && shape.n_heads % shape.n_kv_heads == 0, "{} heads do not divide over {}",
           shape.n_heads, shape.n_kv_heads);
  check_shape(q_THN, Shape{n_tokens, shape.n_heads * shape.head_dim}, "q_THN");
  const std::int64_t n_keys = n_tokens + shape.n_seq * shape.first;
  check_shape(k_TGN, Shape{n_keys, shape.n_kv_heads * shape.head_dim}, "k_TGN");
  check_shape(v_TGM, Shape{n_keys, shape.n_kv_heads * shape.v_head_dim}, "v_TGM");
  check_shape(kv_begin_T, Shape{n_tokens}, "kv_begin_T");
  check_dtype(k_TGN, q_THN.dtype(), "k_TGN");
  check_dtype(v_TGM, q_THN.dtype(), "v_TGM");
  check_dtype(kv_begin_T, DType::i32, "kv_begin_T");
}

void check_outputs(const Tensor& out_THM, const Tensor& lse_TH, const Tensor& q_THN,
                   const AttentionShape& shape) {
  check_shape(out_THM, Shape{q_THN.rows(), shape.n_heads * shape.v_head_dim}, "out_THM");
  check_shape(lse_TH, Shape{q_THN.rows(), shape.n_heads}, "lse_TH");
  check_dtype(out_THM, q_THN.dtype(), "out_THM");
  check_statistics_of(lse_TH, q_THN, "lse_TH");
}

}  // namespace

void attention_forward(Tensor out_THM, Tensor lse_TH, Tensor q_THN, Tensor k_TGN, Tensor v_TGM,
                       Tensor kv_begin_T, const AttentionShape& shape, Context& ctx, Tensor entropy_TH) {
  check_sizes(q_THN, k_TGN, v_TGM, kv_begin_T, shape);
  check_outputs(out_THM, lse_TH, q_THN, shape);
  if (entropy_TH.defined()) check_like(entropy_TH, lse_TH, "entropy_TH");
  SY_ON_CUDA(ctx,
             cuda::attention_forward(out_THM, lse_TH, q_THN, k_TGN, v_TGM, kv_begin_T, shape, ctx, entropy_TH));
  with_scalar(out_THM.dtype(), [&]<class T>() {
    cpu::attention_forward<T>(out_THM, lse_TH, entropy_TH, q_THN, k_TGN, v_TGM, kv_begin_T, shape, ctx);
  });
}

void attention_row_entropy(Tensor entropy_T, Tensor entropy_TH, Tensor kv_begin_T, std::int64_t seq_len,
                           std::int64_t first, Context& ctx) {
  check_shape(entropy_T, Shape{entropy_TH.rows()}, "entropy_T");
  check_shape(kv_begin_T, entropy_T.shape(), "kv_begin_T");
  check_dtype(entropy_T, entropy_TH.dtype(), "entropy_T");
  check_dtype(kv_begin_T, DType::i32, "kv_begin_T");
  SY_ON_CUDA(ctx, cuda::attention_row_entropy(entropy_T, entropy_TH, kv_begin_T, seq_len, first, ctx));
  with_scalar(entropy_T.dtype(), [&]<class T>() {
    cpu::attention_row_entropy<T>(entropy_T, entropy_TH, kv_begin_T, seq_len, first);
  });
}

void attention_backward(Tensor dq_THN, Tensor dk_TGN, Tensor dv_TGM, Tensor dout_THM, Tensor out_THM,
                        Tensor lse_TH, Tensor q_THN, Tensor k_TGN, Tensor v_TGM, Tensor kv_begin_T,
                        const AttentionShape& shape, Context& ctx) {
  check_sizes(q_THN, k_TGN, v_TGM, kv_begin_T, shape);
  check_outputs(out_THM, lse_TH, q_THN, shape);
  check_like(dq_THN, q_THN, "dq_THN");
  check_like(dk_TGN, k_TGN, "dk_TGN");
  check_like(dv_TGM, v_TGM, "dv_TGM");
  check_like(dout_THM, out_THM, "dout_THM");
  SY_ON_CUDA(ctx, cuda::attention_backward(dq_THN, dk_TGN, dv_TGM, dout_THM, out_THM, lse_TH, q_THN, k_TGN,
                                           v_TGM, kv_begin_T, shape, ctx));
  with_scalar(dq_THN.dtype(), [&]<class T>() {
    cpu::attention_backward<T>(dq_THN, dk_TGN, dv_TGM, dout_THM, out_THM, lse_TH, q_THN, k_TGN, v_TGM,
                               kv_begin_T, shape, ctx);
  });
}

std::string cudnn_attention_obstacle(const AttentionShape& shape, Device device) {
  if (device == Device::cpu) return "the run computes on the CPU (--device), and cuDNN on a CUDA device alone";
  if constexpr (kHasCuda && cuda::kHasCudnn) return cuda::attention_cudnn_obstacle(shape);
  return "this program was built without cuDNN: install cuDNN 9 and its headers and cudnn-frontend (pip "
         "install "
         "nvidia-cudnn-frontend), and build with -DSWITCHYARD_CUDNN=ON (docs/cuda.md)";
}

}  // namespace switchyard::ops
