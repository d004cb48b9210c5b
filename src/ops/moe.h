// Moving tokens to their experts and back.
//   T tokens, K slots a token, R <= T*K routed rows, E experts, D width
// A slot with expert < 0 is free: it takes no row and adds nothing.
#pragma once

#include "core/context.h"

namespace switchyard::ops {

// Counting sort of the slots by expert, stable in (token, slot) order. All i32:
//   count_E[e] = slots of expert e;  offset_E1 = exclusive prefix sums, offset_E1[E] = R;
//   slot_row_TK[t,k] = the row of that slot, -1 where free. All set.
void moe_permutation(Tensor count_E, Tensor offset_E1, Tensor slot_row_TK, Tensor expert_TK, Context& ctx);

// Below, row_RD has room for T*K rows; those from R on are neither read nor written.

// row_RD[r] = x_TD[token of row r], set for r < R.
void moe_dispatch_forward(Tensor row_RD, Tensor x_TD, Tensor slot_row_TK, Context& ctx);
// dx_TD[t] += sum_k drow_RD[slot_row_TK[t,k]], k ascending.
void moe_dispatch_backward(Tensor dx_TD, Tensor drow_RD, Tensor slot_row_TK, Context& ctx);

// out_TD[t] += sum_k weight_TK[t,k] * row_RD[slot_row_TK[t,k]], k ascending.
void moe_combine_forward(Tensor out_TD, Tensor row_RD, Tensor weight_TK, Tensor slot_row_TK, Context& ctx);
// drow_RD[slot_row_TK[t,k]] = weight_TK[t,k] * dout_TD[t];  dweight_TK[t,k] = dout_TD[t] .
// row_RD[slot_row_TK[t,k]], 0 for a free slot. Both set. drow_RD may be row_RD.
void moe_combine_backward(Tensor drow_RD, Tensor dweight_TK, Tensor dout_TD, Tensor row_RD, Tensor weight_TK,
                          Tensor slot_row_TK, Context& ctx);

}  // namespace switchyard::ops
