#include "ops/sigmoid_group.h"

#include "core/expert_groups.h"
#include "cpu/sigmoid_group.h"
#include "cuda/sigmoid_group.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

void sigmoid_forward(Tensor score_TE, Tensor logit_TE, Context& ctx) {
  check_like(score_TE, logit_TE, "score_TE");
  SY_ON_CUDA(ctx, cuda::sigmoid_forward(score_TE, logit_TE, ctx));
  with_scalar(score_TE.dtype(), [&]<class T>() { cpu::sigmoid_forward<T>(score_TE, logit_TE); });
}

void sigmoid_backward(Tensor dlogit_TE, Tensor dscore_TE, Tensor score_TE, Context& ctx) {
  check_like(dlogit_TE, score_TE, "dlogit_TE");
  check_like(dscore_TE, score_TE, "dscore_TE");
  SY_ON_CUDA(ctx, cuda::sigmoid_backward(dlogit_TE, dscore_TE, score_TE, ctx));
  with_scalar(score_TE.dtype(), [&]<class T>() { cpu::sigmoid_backward<T>(dlogit_TE, dscore_TE, score_TE); });
}

void group_choice(Tensor choice_TE, Tensor score_TE, Tensor bias_E, std::int64_t n_group,
                  std::int64_t topk_group, Context& ctx) {
  check_like(choice_TE, score_TE, "choice_TE");
  check_shape(bias_E, Shape{score_TE.dim(1)}, "bias_E");
  check_dtype(bias_E, score_TE.dtype(), "bias_E");
  SY_CHECK(n_group >= 1 && n_group <= kMaxExpertGroups && score_TE.dim(1) % n_group == 0,
           "{} experts in {} groups", score_TE.dim(1), n_group);
  SY_CHECK(topk_group >= 1 && topk_group <= n_group, "{} of {} groups", topk_group, n_group);
  SY_ON_CUDA(ctx, cuda::group_choice(choice_TE, score_TE, bias_E, n_group, topk_group, ctx));
  with_scalar(score_TE.dtype(),
              [&]<class T>() { cpu::group_choice<T>(choice_TE, score_TE, bias_E, n_group, topk_group); });
}

void gather_slots(Tensor chosen_TK, Tensor score_TE, Tensor expert_TK, Context& ctx) {
  check_shape(chosen_TK, expert_TK.shape(), "chosen_TK");
  check_shape(expert_TK, Shape{score_TE.rows(), expert_TK.dim(1)}, "expert_TK");
  check_dtype(expert_TK, DType::i32, "expert_TK");
  check_dtype(chosen_TK, score_TE.dtype(), "chosen_TK");
  SY_ON_CUDA(ctx, cuda::gather_slots(chosen_TK, score_TE, expert_TK, ctx));
  with_scalar(score_TE.dtype(), [&]<class T>() { cpu::gather_slots<T>(chosen_TK, score_TE, expert_TK); });
}

void row_share_forward(Tensor prob_TE, Tensor score_TE, Context& ctx) {
  check_like(prob_TE, score_TE, "prob_TE");
  SY_ON_CUDA(ctx, cuda::row_share_forward(prob_TE, score_TE, ctx));
  with_scalar(score_TE.dtype(), [&]<class T>() { cpu::row_share_forward<T>(prob_TE, score_TE); });
}

void row_share_backward(Tensor dscore_TE, Tensor dprob_TE, Tensor prob_TE, Tensor score_TE, Context& ctx) {
  check_like(dscore_TE, score_TE, "dscore_TE");
  check_like(dprob_TE, score_TE, "dprob_TE");
  check_like(prob_TE, score_TE, "prob_TE");
  SY_ON_CUDA(ctx, cuda::row_share_backward(dscore_TE, dprob_TE, prob_TE, score_TE, ctx));
  with_scalar(score_TE.dtype(),
              [&]<class T>() { cpu::row_share_backward<T>(dscore_TE, dprob_TE, prob_TE, score_TE); });
}

}  // namespace switchyard::ops
