#include "ops/topk.h"

#include "cpu/topk.h"
#include "cuda/topk.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

namespace {

void check_matrix_like(const Tensor& tensor_TE, const Tensor& other_TE, const char* name) {
  check_shape(other_TE, Shape{other_TE.rows(), other_TE.dim(1)}, "the [T, E] scores");
  check_shape(tensor_TE, other_TE.shape(), name);
  check_dtype(tensor_TE, other_TE.dtype(), name);
}

}  // namespace

void softmax_forward(Tensor prob_TE, Tensor lse_T, Tensor logit_TE, Context& ctx) {
  check_matrix_like(prob_TE, logit_TE, "prob_TE");
  check_shape(lse_T, Shape{logit_TE.rows()}, "lse_T");
  check_dtype(lse_T, logit_TE.dtype(), "lse_T");
  SY_ON_CUDA(ctx, cuda::softmax_forward(prob_TE, lse_T, logit_TE, ctx));
  with_scalar(logit_TE.dtype(), [&]<class T>() { cpu::softmax_forward<T>(prob_TE, lse_T, logit_TE); });
}

void softmax_backward(Tensor dlogit_TE, Tensor dprob_TE, Tensor prob_TE, Context& ctx) {
  check_matrix_like(dlogit_TE, prob_TE, "dlogit_TE");
  check_matrix_like(dprob_TE, prob_TE, "dprob_TE");
  SY_ON_CUDA(ctx, cuda::softmax_backward(dlogit_TE, dprob_TE, prob_TE, ctx));
  with_scalar(prob_TE.dtype(), [&]<class T>() { cpu::softmax_backward<T>(dlogit_TE, dprob_TE, prob_TE); });
}

void top_k(Tensor expert_TK, Tensor chosen_TK, Tensor score_TE, Tensor skip_T, Context& ctx) {
  check_shape(score_TE, Shape{skip_T.rows(), score_TE.dim(1)}, "score_TE");
  check_shape(expert_TK, Shape{skip_T.rows(), expert_TK.dim(1)}, "expert_TK");
  check_shape(chosen_TK, expert_TK.shape(), "chosen_TK");
  check_shape(skip_T, Shape{skip_T.rows()}, "skip_T");
  check_dtype(expert_TK, DType::i32, "expert_TK");
  check_dtype(skip_T, DType::i32, "skip_T");
  check_dtype(chosen_TK, score_TE.dtype(), "chosen_TK");
  SY_CHECK(expert_TK.dim(1) >= 1 && expert_TK.dim(1) <= score_TE.dim(1), "{} slots for {} experts",
           expert_TK.dim(1), score_TE.dim(1));
  SY_ON_CUDA(ctx, cuda::top_k(expert_TK, chosen_TK, score_TE, skip_T, ctx));
  with_scalar(score_TE.dtype(), [&]<class T>() { cpu::top_k<T>(expert_TK, chosen_TK, score_TE, skip_T); });
}

}  // namespace switchyard::ops
