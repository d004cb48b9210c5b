#include "ops/bias.h"

#include "cpu/bias.h"
#include "cuda/bias.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

void bias_forward(Tensor out_TN, Tensor bias_N, Context& ctx) {
  check_shape(bias_N, Shape{bias_N.dim(0)}, "bias_N");
  check_shape(out_TN, Shape{out_TN.rows(), bias_N.dim(0)}, "out_TN");
  check_dtype(bias_N, out_TN.dtype(), "bias_N");
  SY_ON_CUDA(ctx, cuda::bias_forward(out_TN, bias_N, ctx));
  with_scalar(out_TN.dtype(), [&]<class T>() { cpu::bias_forward<T>(out_TN, bias_N); });
}

void bias_backward(Tensor dbias_N, Tensor dout_TN, Context& ctx) {
  check_shape(dbias_N, Shape{dbias_N.dim(0)}, "dbias_N");
  check_shape(dout_TN, Shape{dout_TN.rows(), dbias_N.dim(0)}, "dout_TN");
  check_statistics_of(dbias_N, dout_TN, "dbias_N");
  SY_ON_CUDA(ctx, cuda::bias_backward(dbias_N, dout_TN, ctx));
  with_scalar(dout_TN.dtype(), [&]<class T>() { cpu::bias_backward<T>(dbias_N, dout_TN, ctx.scratch); });
}

}  // namespace switchyard::ops
