// Sums over whole tensors and other small things.
#pragma once

#include "ops/operator.h"

namespace switchyard::ops {

SY_OPERATOR(fill_zero, Tensor out, Context& ctx);  // any shape; all bytes zero
// out = in; equal shapes; rows may be strided. On a device from bf16 to f32 and from f32 to bf16, too: rounded.
SY_OPERATOR(copy, Tensor out, Tensor in, Context& ctx);
// out = a + b; out may be a or b. On a device b may be f32 where the others are bf16.
SY_OPERATOR(add, Tensor out, Tensor a, Tensor b, Context& ctx);
// sum_N += factor * value_N; f64, contiguous.
SY_OPERATOR(accumulate, Tensor sum_N, Tensor value_N, double factor, Context& ctx);
// Sum of squares of a contiguous tensor, in double, in fixed blocks whose sums are added in ascending order.
// sum_1: f64, set.
SY_OPERATOR(sum_of_squares, Tensor sum_1, Tensor in, Context& ctx);
// The same as a number: waits for the device.
double sum_of_squares(Tensor in, Context& ctx);

}  // namespace switchyard::ops
