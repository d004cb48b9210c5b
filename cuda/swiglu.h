// SwiGLU on the device; shapes and formulas: ops/swiglu.h. All tensors f32, or all bf16; weight_R and dweight_R
// always f32.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cuda {

void swiglu_forward(Tensor out_RF, Tensor gate_up_R2F, Context& ctx);
void swiglu_backward(Tensor dgate_up_R2F, Tensor dout_RF, Tensor gate_up_R2F, Context& ctx);  // in place, too

void expert_swiglu_forward(Tensor out_RF, Tensor gate_up_R2F, Tensor weight_R, Tensor offset_Ep, Context& ctx);
void expert_swiglu_backward(Tensor dgate_up_R2F, Tensor dweight_R, Tensor dout_RF, Tensor gate_up_R2F,
                            Tensor weight_R, Tensor offset_Ep, Context& ctx);  // in place, too

}  // namespace switchyard::ops::cuda
