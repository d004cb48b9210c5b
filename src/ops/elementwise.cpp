#include "ops/elementwise.h"

#include "cpu/elementwise.h"
#include "cuda/elementwise.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

void fill_zero(Tensor out, Context& ctx) {
  SY_ON_CUDA(ctx, cuda::fill_zero(out, ctx));
  cpu::fill_zero(out);
}

void copy(Tensor out, Tensor in, Context& ctx) {
  check_shape(out, in.shape(), "out");
  SY_ON_CUDA(ctx, cuda::copy(out, in, ctx));
  check_dtype(out, in.dtype(), "out");
  cpu::copy(out, in);
}

void add(Tensor out, Tensor a, Tensor b, Context& ctx) {
  check_shape(out, a.shape(), "out");
  check_shape(b, a.shape(), "b");
  check_dtype(out, a.dtype(), "out");
  SY_ON_CUDA(ctx, cuda::add(out, a, b, ctx));
  check_dtype(b, a.dtype(), "b");
  with_scalar(out.dtype(), [&]<class T>() { cpu::add<T>(out, a, b); });
}

double sum_of_squares(Tensor in, Context& ctx) {
  check_contiguous(in, "in");
  SY_ON_CUDA(ctx, cuda::sum_of_squares(in, ctx));
  double sum = 0;
  with_scalar(in.dtype(), [&]<class T>() { sum = cpu::sum_of_squares<T>(in, ctx.scratch); });
  return sum;
}

}  // namespace switchyard::ops
