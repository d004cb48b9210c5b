#include "ops/elementwise.h"

#include "core/device_memory.h"
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

void accumulate(Tensor sum_N, Tensor value_N, double factor, Context& ctx) {
  check_f64(sum_N, Shape{sum_N.rows()}, "sum_N");
  check_f64(value_N, sum_N.shape(), "value_N");
  SY_ON_CUDA(ctx, cuda::accumulate(sum_N, value_N, factor, ctx));
  cpu::accumulate(sum_N, value_N, factor);
}

void sum_of_squares(Tensor sum_1, Tensor in, Context& ctx) {
  check_contiguous(in, "in");
  check_shape(sum_1, Shape{1}, "sum_1");
  check_dtype(sum_1, DType::f64, "sum_1");
  SY_ON_CUDA(ctx, cuda::sum_of_squares(sum_1, in, ctx));
  with_scalar(in.dtype(), [&]<class T>() { sum_1.as<double>()[0] = cpu::sum_of_squares<T>(in, ctx.scratch); });
}

double sum_of_squares(Tensor in, Context& ctx) {
  ScratchScope scope(ctx.scratch);
  const Tensor sum_1 = ctx.scratch.take(Shape{1}, DType::f64);
  sum_of_squares(sum_1, in, ctx);
  return HostCopy(sum_1)->as<double>()[0];
}

}  // namespace switchyard::ops
