// Moving tokens to their experts and back on the device; shapes and formulas: ops/moe.h. Rows, tokens and their
// gradients are f32 or all bf16, summed in f32; weight_TK and dweight_TK are f32, expert_TK and the rest i32.
#pragma once

#include "core/context.h"

namespace switchyard::cuda {

// expert_TK holds no expert that is not there: nothing looks for one.
void moe_permutation(Tensor count_E, Tensor offset_E1, Tensor slot_row_TK, Tensor expert_TK, Context& ctx);
void moe_dispatch_forward(Tensor row_RD, Tensor x_TD, Tensor slot_row_TK, Context& ctx);
void moe_dispatch_backward(Tensor dx_TD, Tensor drow_RD, Tensor slot_row_TK, Context& ctx);
void moe_combine_forward(Tensor out_TD, Tensor row_RD, Tensor weight_TK, Tensor slot_row_TK, Context& ctx);
void moe_combine_backward(Tensor drow_RD, Tensor dweight_TK, Tensor dout_TD, Tensor row_RD, Tensor weight_TK,
                          Tensor slot_row_TK, Context& ctx);

}  // namespace switchyard::cuda
