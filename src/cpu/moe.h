// CPU implementation of ops/moe.h.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cpu {

void moe_permutation(Tensor count_E, Tensor offset_Ep, Tensor slot_row_TK, Tensor expert_TK, Context& ctx);
template <class T>
void moe_dispatch_forward(Tensor row_RD, Tensor weight_R, Tensor x_TD, Tensor weight_TK, Tensor slot_row_TK);
template <class T>
void moe_dispatch_backward(Tensor dx_TD, Tensor dweight_TK, Tensor drow_RD, Tensor dweight_R,
                           Tensor slot_row_TK);
template <class T>
void moe_combine_forward(Tensor out_TD, Tensor addend_TD, Tensor row_RD, Tensor slot_row_TK);
template <class T>
void moe_combine_backward(Tensor drow_RD, Tensor dout_TD, Tensor slot_row_TK);

}  // namespace switchyard::ops::cpu
