#include "ops/routing.h"

#include "cpu/routing.h"
#include "cuda/routing.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

void slot_weights_forward(Tensor weight_TK, Tensor chosen_TK, Tensor expert_TK, const SlotWeighting& weighting,
                          Context& ctx) {
  check_shape(weight_TK, expert_TK.shape(), "weight_TK");
  check_like(chosen_TK, weight_TK, "chosen_TK");
  check_dtype(expert_TK, DType::i32, "expert_TK");
  SY_ON_CUDA(ctx, cuda::slot_weights_forward(weight_TK, chosen_TK, expert_TK, weighting, ctx));
  with_scalar(weight_TK.dtype(),
              [&]<class T>() { cpu::slot_weights_forward<T>(weight_TK, chosen_TK, expert_TK, weighting); });
}

void slot_weights_backward(Tensor dscore_TE, Tensor dweight_TK, Tensor weight_TK, Tensor chosen_TK,
                           Tensor expert_TK, const SlotWeighting& weighting, Context& ctx) {
  check_shape(dweight_TK, expert_TK.shape(), "dweight_TK");
  check_like(weight_TK, dweight_TK, "weight_TK");
  check_like(chosen_TK, dweight_TK, "chosen_TK");
  check_shape(dscore_TE, Shape{expert_TK.rows(), dscore_TE.dim(1)}, "dscore_TE");
  check_dtype(dscore_TE, dweight_TK.dtype(), "dscore_TE");
  check_dtype(expert_TK, DType::i32, "expert_TK");
  SY_ON_CUDA(
      ctx, cuda::slot_weights_backward(dscore_TE, dweight_TK, weight_TK, chosen_TK, expert_TK, weighting, ctx));
  with_scalar(dscore_TE.dtype(), [&]<class T>() {
    cpu::slot_weights_backward<T>(dscore_TE, dweight_TK, weight_TK, chosen_TK, expert_TK, weighting);
  });
}

void routing_sums(Tensor count_BE, Tensor prob_sum_BE, Tensor lse2_sum_B, Tensor expert_TK, Tensor prob_TE,
                  Tensor lse_T, Tensor token_T, Context& ctx) {
  const std::int64_t n_tokens = token_T.rows(), n_seq = count_BE.rows();
  SY_CHECK(n_seq > 0 && n_tokens % n_seq == 0, "{} tokens are not {} equal sequences", n_tokens, n_seq);
  check_shape(prob_TE, Shape{n_tokens, count_BE.dim(1)}, "prob_TE");
  check_shape(prob_sum_BE, count_BE.shape(), "prob_sum_BE");
  check_shape(lse2_sum_B, Shape{n_seq}, "lse2_sum_B");
  check_shape(expert_TK, Shape{n_tokens, expert_TK.dim(1)}, "expert_TK");
  check_shape(lse_T, token_T.shape(), "lse_T");
  check_dtype(count_BE, DType::i32, "count_BE");
  check_dtype(prob_sum_BE, DType::f64, "prob_sum_BE");
  check_dtype(lse2_sum_B, DType::f64, "lse2_sum_B");
  check_dtype(expert_TK, DType::i32, "expert_TK");
  check_dtype(lse_T, prob_TE.dtype(), "lse_T");
  check_dtype(token_T, DType::i32, "token_T");
  SY_ON_CUDA(ctx,
             cuda::routing_sums(count_BE, prob_sum_BE, lse2_sum_B, expert_TK, prob_TE, lse_T, token_T, ctx));
  with_scalar(prob_TE.dtype(), [&]<class T>() {
    cpu::routing_sums<T>(count_BE, prob_sum_BE, lse2_sum_B, expert_TK, prob_TE, lse_T, token_T);
  });
}

void add_sequence_gradient(Tensor dprob_TE, Tensor dprob_BE, Tensor token_T, Context& ctx) {
  check_shape(dprob_TE, Shape{token_T.rows(), dprob_BE.dim(1)}, "dprob_TE");
  SY_CHECK(dprob_BE.rows() > 0 && token_T.rows() % dprob_BE.rows() == 0, "{} tokens are not {} equal sequences",
           token_T.rows(), dprob_BE.rows());
  check_dtype(dprob_BE, DType::f64, "dprob_BE");
  check_dtype(token_T, DType::i32, "token_T");
  SY_ON_CUDA(ctx, cuda::add_sequence_gradient(dprob_TE, dprob_BE, token_T, ctx));
  with_scalar(dprob_TE.dtype(), [&]<class T>() { cpu::add_sequence_gradient<T>(dprob_TE, dprob_BE, token_T); });
}

void z_loss_backward(Tensor dlogit_TE, Tensor prob_TE, Tensor lse_T, Tensor token_T, double dz, Context& ctx) {
  check_like(dlogit_TE, prob_TE, "dlogit_TE");
  check_shape(lse_T, Shape{prob_TE.rows()}, "lse_T");
  check_shape(token_T, lse_T.shape(), "token_T");
  check_dtype(lse_T, prob_TE.dtype(), "lse_T");
  check_dtype(token_T, DType::i32, "token_T");
  SY_ON_CUDA(ctx, cuda::z_loss_backward(dlogit_TE, prob_TE, lse_T, token_T, dz, ctx));
  with_scalar(prob_TE.dtype(),
              [&]<class T>() { cpu::z_loss_backward<T>(dlogit_TE, prob_TE, lse_T, token_T, dz); });
}

}  // namespace switchyard::ops
