#include "ops/layernorm.h"

#include "cpu/layernorm.h"
#include "cuda/layernorm.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

namespace {

void check_rows(const Tensor& x_TD, const Tensor& mean_T, const Tensor& rstd_T, const Tensor& weight_D,
                const Tensor& bias_D) {
  check_shape(x_TD, Shape{mean_T.rows(), weight_D.rows()}, "x_TD");
  check_shape(mean_T, Shape{x_TD.rows()}, "mean_T");
  check_shape(weight_D, Shape{x_TD.dim(1)}, "weight_D");
  check_like(rstd_T, mean_T, "rstd_T");
  check_like(bias_D, weight_D, "bias_D");
  check_dtype(mean_T, x_TD.dtype(), "mean_T");
  check_dtype(weight_D, x_TD.dtype(), "weight_D");
  check_contiguous(weight_D, "weight_D");
  check_contiguous(bias_D, "bias_D");
}

}  // namespace

void layernorm_silu_forward(Tensor out_TD, Tensor mean_T, Tensor rstd_T, Tensor x_TD, Tensor weight_D,
                            Tensor bias_D, double eps, Context& ctx) {
  check_rows(x_TD, mean_T, rstd_T, weight_D, bias_D);
  check_like(out_TD, x_TD, "out_TD");
  SY_ON_CUDA(ctx, cuda::layernorm_silu_forward(out_TD, mean_T, rstd_T, x_TD, weight_D, bias_D, eps, ctx));
  with_scalar(x_TD.dtype(), [&]<class T>() {
    cpu::layernorm_silu_forward<T>(out_TD, mean_T, rstd_T, x_TD, weight_D, bias_D, eps);
  });
}

void layernorm_silu_backward(Tensor dx_TD, Tensor dweight_D, Tensor dbias_D, Tensor dout_TD, Tensor x_TD,
                             Tensor mean_T, Tensor rstd_T, Tensor weight_D, Tensor bias_D, Context& ctx) {
  check_rows(x_TD, mean_T, rstd_T, weight_D, bias_D);
  check_like(dx_TD, x_TD, "dx_TD");
  check_like(dout_TD, x_TD, "dout_TD");
  check_like(dweight_D, weight_D, "dweight_D");
  check_like(dbias_D, weight_D, "dbias_D");
  SY_ON_CUDA(ctx, cuda::layernorm_silu_backward(dx_TD, dweight_D, dbias_D, dout_TD, x_TD, mean_T, rstd_T,
                                                weight_D, bias_D, ctx));
  with_scalar(x_TD.dtype(), [&]<class T>() {
    cpu::layernorm_silu_backward<T>(dx_TD, dweight_D, dbias_D, dout_TD, x_TD, mean_T, rstd_T, weight_D, bias_D,
                                    ctx.scratch);
  });
}

}  // namespace switchyard::ops
