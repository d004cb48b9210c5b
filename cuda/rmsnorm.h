// RMSNorm on the device; shapes and formulas: ops/rmsnorm.h. in, out, weight and their gradients f32, or all
// bf16 but for dweight_N, which is f32 always, as rstd_TG is. Statistics and sums in f32.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cuda {

void rmsnorm_forward(Tensor out_TGN, Tensor rstd_TG, Tensor in_TGN, Tensor weight_N, double eps, Context& ctx);
void rmsnorm_backward(Tensor din_TGN, Tensor dweight_N, Tensor dout_TGN, Tensor in_TGN, Tensor rstd_TG,
                      Tensor weight_N, Context& ctx);

}  // namespace switchyard::ops::cuda
