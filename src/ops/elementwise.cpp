#include "ops/elementwise.h"

#include "cpu/elementwise.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

void fill_zero(Tensor out, Context&) { cpu::fill_zero(out); }

void copy(Tensor out, Tensor in, Context&) {
  check_shape(out, in.shape(), "out");
  check_dtype(out, in.dtype(), "out");
  cpu::copy(out, in);
}

void add(Tensor out, Tensor a, Tensor b, Context&) {
  check_shape(out, a.shape(), "out");
  check_shape(b, a.shape(), "b");
  check_dtype(out, a.dtype(), "out");
  check_dtype(b, a.dtype(), "b");
  with_scalar(out.dtype(), [&]<class T>() { cpu::add<T>(out, a, b); });
}

double sum_of_squares(Tensor in, Context& ctx) {
  check_contiguous(in, "in");
  double sum = 0;
  with_scalar(in.dtype(), [&]<class T>() { sum = cpu::sum_of_squares<T>(in, ctx.scratch); });
  return sum;
}

}  // namespace switchyard::ops
