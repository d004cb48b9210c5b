#include "ops/slots.h"

#include "cpu/slots.h"
#include "cuda/slots.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

namespace {

void check_slots(const Tensor& expert_TK, const Tensor& chosen_TK) {
  check_shape(chosen_TK, expert_TK.shape(), "chosen_TK");
  check_dtype(expert_TK, DType::i32, "expert_TK");
}

}  // namespace

void keep_prefix_sum(Tensor expert_TK, Tensor chosen_TK, double p, Context& ctx) {
  check_slots(expert_TK, chosen_TK);
  SY_ON_CUDA(ctx, cuda::keep_prefix_sum(expert_TK, chosen_TK, p, ctx));
  with_scalar(chosen_TK.dtype(), [&]<class T>() { cpu::keep_prefix_sum<T>(expert_TK, chosen_TK, p); });
}

void keep_count(Tensor expert_TK, Tensor chosen_TK, Tensor count_T, Context& ctx) {
  check_slots(expert_TK, chosen_TK);
  check_shape(count_T, Shape{expert_TK.rows()}, "count_T");
  check_dtype(count_T, DType::i32, "count_T");
  SY_ON_CUDA(ctx, cuda::keep_count(expert_TK, chosen_TK, count_T, ctx));
  with_scalar(chosen_TK.dtype(), [&]<class T>() { cpu::keep_count<T>(expert_TK, chosen_TK, count_T); });
}

void keep_finite(Tensor expert_TK, Tensor chosen_TK, Context& ctx) {
  check_slots(expert_TK, chosen_TK);
  SY_ON_CUDA(ctx, cuda::keep_finite(expert_TK, chosen_TK, ctx));
  with_scalar(chosen_TK.dtype(), [&]<class T>() { cpu::keep_finite<T>(expert_TK, chosen_TK); });
}

void threshold_choice(Tensor choice_TE, Tensor score_TE, Tensor threshold_E, Context& ctx) {
  check_like(choice_TE, score_TE, "choice_TE");
  check_shape(threshold_E, Shape{score_TE.dim(1)}, "threshold_E");
  check_dtype(threshold_E, score_TE.dtype(), "threshold_E");
  SY_ON_CUDA(ctx, cuda::threshold_choice(choice_TE, score_TE, threshold_E, ctx));
  with_scalar(score_TE.dtype(), [&]<class T>() { cpu::threshold_choice<T>(choice_TE, score_TE, threshold_E); });
}

void slot_softmax_forward(Tensor weight_TK, Tensor chosen_TK, Tensor expert_TK, double scale, Context& ctx) {
  check_slots(expert_TK, chosen_TK);
  check_like(weight_TK, chosen_TK, "weight_TK");
  SY_ON_CUDA(ctx, cuda::slot_softmax_forward(weight_TK, chosen_TK, expert_TK, scale, ctx));
  with_scalar(weight_TK.dtype(),
              [&]<class T>() { cpu::slot_softmax_forward<T>(weight_TK, chosen_TK, expert_TK, scale); });
}

void slot_softmax_backward(Tensor dscore_TE, Tensor dweight_TK, Tensor weight_TK, Tensor expert_TK,
                           double scale, Context& ctx) {
  check_slots(expert_TK, weight_TK);
  check_like(dweight_TK, weight_TK, "dweight_TK");
  check_shape(dscore_TE, Shape{expert_TK.rows(), dscore_TE.dim(1)}, "dscore_TE");
  check_dtype(dscore_TE, weight_TK.dtype(), "dscore_TE");
  SY_ON_CUDA(ctx, cuda::slot_softmax_backward(dscore_TE, dweight_TK, weight_TK, expert_TK, scale, ctx));
  with_scalar(weight_TK.dtype(), [&]<class T>() {
    cpu::slot_softmax_backward<T>(dscore_TE, dweight_TK, weight_TK, expert_TK, scale);
  });
}

}  // namespace switchyard::ops
