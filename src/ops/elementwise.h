// Sums over whole tensors and other small things.
#pragma once

#include "core/context.h"

namespace switchyard::ops {

void fill_zero(Tensor out, Context& ctx);                // any shape; all bytes zero
void copy(Tensor out, Tensor in, Context& ctx);          // out = in; equal shapes; rows may be strided
void add(Tensor out, Tensor a, Tensor b, Context& ctx);  // out = a + b; out may be a or b
// Sum of squares of a contiguous tensor, in double, in fixed blocks whose sums are added in ascending order.
double sum_of_squares(Tensor in, Context& ctx);

}  // namespace switchyard::ops
