#include "ops/qk_norm_rope.h"

#include "cpu/qk_norm_rope.h"
#include "cuda/qk_norm_rope.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

namespace {

void check_vector(const Tensor& value_N, std::int64_t width, DType dtype, const char* name) {
  check_shape(value_N, Shape{width}, name);
  check_contiguous(value_N, name);
  check_dtype(value_N, dtype, name);
}

void check_inputs(const QueryKey& out, const QueryKey& rstd, const Tensor& qkv_TM, const QueryKey& weight_N,
                  const Tensor& cos_SP, const Tensor& sin_SP, std::int64_t seq_len) {
  const std::int64_t n_tokens = qkv_TM.rows(), width = weight_N.q.dim(0);
  const std::int64_t q_heads = rstd.q.dim(1), k_heads = rstd.k.dim(1);
  const DType dtype = qkv_TM.dtype();
  SY_CHECK(qkv_TM.shape().rank() == 2 && qkv_TM.dim(1) >= (q_heads + k_heads) * width,
           "qkv_TM is {}, expected {} and {} heads of {}", qkv_TM.shape().to_string(), q_heads, k_heads, width);
  check_vector(weight_N.q, width, dtype, "q's weight_N");
  check_vector(weight_N.k, width, dtype, "k's weight_N");
  check_shape(out.q, Shape{n_tokens, q_heads * width}, "q_THN");
  check_shape(out.k, Shape{n_tokens, k_heads * width}, "k_TGN");
  check_dtype(out.q, dtype, "q_THN");
  check_dtype(out.k, dtype, "k_TGN");
  check_shape(rstd.q, Shape{n_tokens, q_heads}, "q's rstd_TH");
  check_shape(rstd.k, Shape{n_tokens, k_heads}, "k's rstd_TG");
  check_dtype(rstd.q, statistics_type(dtype), "q's rstd_TH");
  check_dtype(rstd.k, statistics_type(dtype), "k's rstd_TG");
  SY_CHECK(width > 0 && width % 2 == 0, "heads of {} have no halves", width);
  check_shape(cos_SP, Shape{cos_SP.rows(), width / 2}, "cos_SP");
  check_shape(sin_SP, cos_SP.shape(), "sin_SP");
  check_dtype(cos_SP, statistics_type(dtype), "cos_SP");
  check_dtype(sin_SP, statistics_type(dtype), "sin_SP");
  SY_CHECK(seq_len > 0 && seq_len <= cos_SP.rows(), "sequences of {} positions, a table of {}", seq_len,
           cos_SP.rows());
}

}  // namespace

void qk_norm_rope_forward(QueryKey out, QueryKey rstd, Tensor qkv_TM, QueryKey weight_N, Tensor cos_SP,
                          Tensor sin_SP, std::int64_t seq_len, double eps, Context& ctx) {
  check_inputs(out, rstd, qkv_TM, weight_N, cos_SP, sin_SP, seq_len);
  SY_ON_CUDA(ctx, cuda::qk_norm_rope_forward(out, rstd, qkv_TM, weight_N, cos_SP, sin_SP, seq_len, eps, ctx));
  with_scalar(qkv_TM.dtype(), [&]<class T>() {
    cpu::qk_norm_rope_forward<T>(out, rstd, qkv_TM, weight_N, cos_SP, sin_SP, seq_len, eps);
  });
}

void qk_norm_rope_backward(Tensor dqkv_TM, QueryKey dweight_N, QueryKey dout, Tensor qkv_TM, QueryKey rstd,
                           QueryKey weight_N, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len,
                           Context& ctx) {
  check_inputs(dout, rstd, qkv_TM, weight_N, cos_SP, sin_SP, seq_len);
  check_like(dqkv_TM, qkv_TM, "dqkv_TM");
  check_vector(dweight_N.q, weight_N.q.dim(0), rstd.q.dtype(), "q's dweight_N");
  check_vector(dweight_N.k, weight_N.k.dim(0), rstd.k.dtype(), "k's dweight_N");
  SY_ON_CUDA(ctx, cuda::qk_norm_rope_backward(dqkv_TM, dweight_N, dout, qkv_TM, rstd, weight_N, cos_SP, sin_SP,
                                              seq_len, ctx));
  with_scalar(qkv_TM.dtype(), [&]<class T>() {
    cpu::qk_norm_rope_backward<T>(dqkv_TM, dweight_N, dout, qkv_TM, rstd, weight_N, cos_SP, sin_SP, seq_len,
                                  ctx.scratch);
  });
}

}  // namespace switchyard::ops
