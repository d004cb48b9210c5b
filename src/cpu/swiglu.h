// The CPU version of ops/swiglu.h, which holds the contracts. T: float or double.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cpu {

template <class T>
void swiglu_forward(Tensor out_RF, Tensor gate_up_R2F);
template <class T>
void swiglu_backward(Tensor dgate_up_R2F, Tensor dout_RF, Tensor gate_up_R2F);

template <class T>
void expert_swiglu_forward(Tensor out_RF, Tensor gate_up_R2F, Tensor weight_R, Tensor offset_Ep);
template <class T>
void expert_swiglu_backward(Tensor dgate_up_R2F, Tensor dweight_R, Tensor dout_RF, Tensor gate_up_R2F,
                            Tensor weight_R, Tensor offset_Ep);

}  // namespace switchyard::ops::cpu
