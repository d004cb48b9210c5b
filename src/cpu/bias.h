// The CPU version of ops/bias.h, which holds the contracts. T: float or double.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cpu {

template <class T>
void bias_forward(Tensor out_TN, Tensor bias_N);
template <class T>
void bias_backward(Tensor dbias_N, Tensor dout_TN, Scratch& scratch);

}  // namespace switchyard::ops::cpu
