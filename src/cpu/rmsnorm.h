// The CPU version of ops/rmsnorm.h, which holds the contracts. T: float or double.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cpu {

template <class T>
void rmsnorm_forward(Tensor out_TGN, Tensor rstd_TG, Tensor in_TGN, Tensor weight_N, double eps);
template <class T>
void rmsnorm_backward(Tensor din_TGN, Tensor dweight_N, Tensor dout_TGN, Tensor in_TGN, Tensor rstd_TG,
                      Tensor weight_N, Scratch& scratch);

}  // namespace switchyard::ops::cpu
