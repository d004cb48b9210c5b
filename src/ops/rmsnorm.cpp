#include "ops/rmsnorm.h"

#include "cpu/rmsnorm.h"
#include "cuda/rmsnorm.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

namespace {

void check_inputs(const Tensor& in_TGN, const Tensor& rstd_TG, const Tensor& weight_N) {
  check_shape(weight_N, Shape{weight_N.dim(0)}, "weight_N");
  check_contiguous(weight_N, "weight_N");
  check_shape(rstd_TG, Shape{in_TGN.rows(), rstd_TG.dim(1)}, "rstd_TG");
  check_shape(in_TGN, Shape{rstd_TG.rows(), rstd_TG.dim(1) * weight_N.dim(0)}, "in_TGN");
  check_statistics_of(rstd_TG, in_TGN, "rstd_TG");
  check_dtype(weight_N, in_TGN.dtype(), "weight_N");
}

}  // namespace

void rmsnorm_forward(Tensor out_TGN, Tensor rstd_TG, Tensor in_TGN, Tensor weight_N, double eps, Context& ctx) {
  check_inputs(in_TGN, rstd_TG, weight_N);
  check_like(out_TGN, in_TGN, "out_TGN");
  SY_ON_CUDA(ctx, cuda::rmsnorm_forward(out_TGN, rstd_TG, in_TGN, weight_N, eps, ctx));
  with_scalar(in_TGN.dtype(),
              [&]<class T>() { cpu::rmsnorm_forward<T>(out_TGN, rstd_TG, in_TGN, weight_N, eps); });
}

void rmsnorm_backward(Tensor din_TGN, Tensor dweight_N, Tensor dout_TGN, Tensor in_TGN, Tensor rstd_TG,
                      Tensor weight_N, Context& ctx) {
  check_inputs(in_TGN, rstd_TG, weight_N);
  check_like(din_TGN, in_TGN, "din_TGN");
  check_like(dout_TGN, in_TGN, "dout_TGN");
  check_shape(dweight_N, weight_N.shape(), "dweight_N");
  check_statistics_of(dweight_N, weight_N, "dweight_N");
  check_contiguous(dweight_N, "dweight_N");
  SY_ON_CUDA(ctx, cuda::rmsnorm_backward(din_TGN, dweight_N, dout_TGN, in_TGN, rstd_TG, weight_N, ctx));
  with_scalar(in_TGN.dtype(), [&]<class T>() {
    cpu::rmsnorm_backward<T>(din_TGN, dweight_N, dout_TGN, in_TGN, rstd_TG, weight_N, ctx.scratch);
  });
}

}  // namespace switchyard::ops
