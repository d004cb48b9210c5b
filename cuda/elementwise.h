// Sums over whole tensors and other small things on the device; what they do: ops/elementwise.h. fill_zero and
// copy take any dtype, accumulate f64, the others f32 or bf16.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cuda {

void fill_zero(Tensor out, Context& ctx);
void copy(Tensor out, Tensor in, Context& ctx);
void add(Tensor out, Tensor a, Tensor b, Context& ctx);
void accumulate(Tensor sum_N, Tensor value_N, double factor, Context& ctx);
void sum_of_squares(Tensor sum_1, Tensor in, Context& ctx);  // the same bits on any device

}  // namespace switchyard::ops::cuda
