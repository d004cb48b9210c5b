// The CPU version of ops/layernorm.h, which holds the contracts. T: float or double.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cpu {

template <class T>
void layernorm_silu_forward(Tensor out_TD, Tensor mean_T, Tensor rstd_T, Tensor x_TD, Tensor weight_D,
                            Tensor bias_D, double eps);
template <class T>
void layernorm_silu_backward(Tensor dx_TD, Tensor dweight_D, Tensor dbias_D, Tensor dout_TD, Tensor x_TD,
                             Tensor mean_T, Tensor rstd_T, Tensor weight_D, Tensor bias_D, Scratch& scratch);

}  // namespace switchyard::ops::cpu
