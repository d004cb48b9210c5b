#include "ops/classifier.h"

#include "cpu/classifier.h"
#include "cuda/classifier.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

namespace {

void check_inputs(const Tensor& loss_T, const Tensor& x_TD, const Tensor& weight_VD, const Tensor& target_T) {
  check_shape(weight_VD, Shape{weight_VD.rows(), x_TD.dim(1)}, "weight_VD");
  check_shape(loss_T, Shape{x_TD.rows()}, "loss_T");
  check_shape(target_T, Shape{x_TD.rows()}, "target_T");
  check_dtype(weight_VD, x_TD.dtype(), "weight_VD");
  check_statistics_of(loss_T, x_TD, "loss_T");
  check_dtype(target_T, DType::i32, "target_T");
}

}  // namespace

void classifier_forward(Tensor loss_T, Tensor x_TD, Tensor weight_VD, Tensor target_T, Context& ctx) {
  check_inputs(loss_T, x_TD, weight_VD, target_T);
  SY_ON_CUDA(ctx, cuda::classifier_forward(loss_T, x_TD, weight_VD, target_T, ctx));
  with_scalar(loss_T.dtype(),
              [&]<class T>() { cpu::classifier_forward<T>(loss_T, x_TD, weight_VD, target_T, ctx); });
}

void classifier_forward_backward(Tensor loss_T, Tensor dx_TD, Tensor dweight_VD, Tensor x_TD, Tensor weight_VD,
                                 Tensor target_T, double dloss, Context& ctx) {
  check_inputs(loss_T, x_TD, weight_VD, target_T);
  check_like(dx_TD, x_TD, "dx_TD");
  check_shape(dweight_VD, weight_VD.shape(), "dweight_VD");
  check_statistics_of(dweight_VD, weight_VD, "dweight_VD");
  SY_ON_CUDA(
      ctx, cuda::classifier_forward_backward(loss_T, dx_TD, dweight_VD, x_TD, weight_VD, target_T, dloss, ctx));
  with_scalar(loss_T.dtype(), [&]<class T>() {
    cpu::classifier_forward_backward<T>(loss_T, dx_TD, dweight_VD, x_TD, weight_VD, target_T, dloss, ctx);
  });
}

}  // namespace switchyard::ops
