// Moving tokens to their experts and back on the device; shapes and formulas: ops/moe.h. Rows, tokens and their
// gradients are f32 or all bf16, summed in f32; weights and their gradients are f32, expert_TK and the rest
// i32.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cuda {

// expert_TK holds no expert that is not there: nothing looks for one.
void moe_permutation(Tensor count_E, Tensor offset_Ep, Tensor slot_row_TK, Tensor expert_TK, Context& ctx);
void moe_dispatch_forward(Tensor row_RD, Tensor weight_R, Tensor x_TD, Tensor weight_TK, Tensor slot_row_TK,
                          Context& ctx);
void moe_dispatch_backward(Tensor dx_TD, Tensor dweight_TK, Tensor drow_RD, Tensor dweight_R,
                           Tensor slot_row_TK, Context& ctx);
void moe_combine_forward(Tensor out_TD, Tensor addend_TD, Tensor row_RD, Tensor slot_row_TK, Context& ctx);
void moe_combine_backward(Tensor drow_RD, Tensor dout_TD, Tensor slot_row_TK, Context& ctx);

}  // namespace switchyard::ops::cuda
