// Matrix products with a weight on the device; shapes and formulas: ops/linear.h. Operands f32, or all bf16;
// outputs and gradients of inputs are of the operands' type or f32, gradients of weights and weight_R always
// f32. Sums are in f32. f32 operands are multiplied as they are (MatmulType::f32, no TF32) or rounded to bf16
// on the way (MatmulType::bf16).
#pragma once

#include "core/context.h"
#include "ops/linear.h"

namespace switchyard::ops::cuda {

using ops::Write;

void linear_forward(Tensor out_TN, Tensor in_TK, Tensor weight_NK, Write write, Context& ctx);
void linear_forward_add(Tensor out_TN, Tensor addend_TN, Tensor in_TK, Tensor weight_NK, Context& ctx);
void linear_backward_input(Tensor din_TK, Tensor dout_TN, Tensor weight_NK, Write write, Context& ctx);
void linear_backward_weight(Tensor dweight_NK, Tensor dout_TN, Tensor in_TK, Context& ctx);

void grouped_linear_forward(Tensor out_RN, Tensor in_RK, Tensor weight_ENK, Tensor offset_Ep, Context& ctx);
void grouped_gate_up_forward(Tensor act_RF, Tensor gate_up_R2F, Tensor in_RK, Tensor weight_E2FK,
                             Tensor weight_R, Tensor offset_Ep, Context& ctx);
void grouped_linear_backward_input(Tensor din_RK, Tensor dout_RN, Tensor weight_ENK, Tensor offset_Ep,
                                   Context& ctx);
void grouped_down_backward(Tensor dgate_up_R2F, Tensor dweight_R, Tensor dout_RN, Tensor weight_ENF,
                           Tensor gate_up_R2F, Tensor weight_R, Tensor offset_Ep,
                           Context& ctx);  // in place, too
void grouped_linear_backward_weight(Tensor dweight_ENK, Tensor dout_RN, Tensor in_RK, Tensor offset_Ep,
                                    Context& ctx);  // added

}  // namespace switchyard::ops::cuda
