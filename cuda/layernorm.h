// LayerNorm with SiLU on the device; shapes and formulas: ops/layernorm.h. All f32: a router's encoder has it.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cuda {

void layernorm_silu_forward(Tensor out_TD, Tensor mean_T, Tensor rstd_T, Tensor x_TD, Tensor weight_D,
                            Tensor bias_D, double eps, Context& ctx);
void layernorm_silu_backward(Tensor dx_TD, Tensor dweight_D, Tensor dbias_D, Tensor dout_TD, Tensor x_TD,
                             Tensor mean_T, Tensor rstd_T, Tensor weight_D, Tensor bias_D, Context& ctx);

}  // namespace switchyard::ops::cuda
