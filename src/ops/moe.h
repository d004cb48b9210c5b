// Moving tokens to their experts and back.
//   T tokens, K slots a token, R routed rows, E experts, D width
// A slot with expert < 0 is free: it takes no row and adds nothing.
#pragma once

#include "ops/operator.h"

namespace switchyard::ops {

// Counting sort of the slots by expert, stable in (token, slot) order. All i32:
//   count_E[e] = slots of expert e;  offset_Ep = exclusive prefix sums, offset_Ep[E] = R;
//   slot_row_TK[t,k] = the row of that slot, -1 where free. All set.
SY_OPERATOR(moe_permutation, Tensor count_E, Tensor offset_Ep, Tensor slot_row_TK, Tensor expert_TK,
            Context& ctx);

// What a rank that has some of the experts does before and after it: expert_TK and slot_row_TK contiguous, all
// i32.

// Experts first, first + 1, ..., first + n - 1 become 0, 1, ..., n - 1; slots of all others become free. In
// place.
SY_OPERATOR(keep_experts, Tensor expert_TK, std::int64_t first, std::int64_t n, Context& ctx);
// Where there are more rows than `room`: offset_Ep is clipped at it, and slots of rows from there on become
// free. In place. need_1 = max(need_1, offset_Ep[E] as it was).
SY_OPERATOR(limit_rows, Tensor offset_Ep, Tensor slot_row_TK, Tensor need_1, std::int64_t room, Context& ctx);

// Below, row_RD and weight_R have room for at least as many rows as slots have; those behind are neither read
// nor written. Beside rows of bf16, weights and their gradients are f32.

// The tokens with their weights to the experts, for every slot that is not free:
//   row_RD[slot_row_TK[t,k]] = x_TD[t];  weight_R[slot_row_TK[t,k]] = weight_TK[t,k]. Both set.
SY_OPERATOR(moe_dispatch_forward, Tensor row_RD, Tensor weight_R, Tensor x_TD, Tensor weight_TK,
            Tensor slot_row_TK, Context& ctx);
// dx_TD[t] += sum_k drow_RD[slot_row_TK[t,k]], k ascending;  dweight_TK[t,k] = dweight_R[slot_row_TK[t,k]], 0
// for a free slot, set.
SY_OPERATOR(moe_dispatch_backward, Tensor dx_TD, Tensor dweight_TK, Tensor drow_RD, Tensor dweight_R,
            Tensor slot_row_TK, Context& ctx);

// The experts' outputs, weighted already (ops/swiglu.h), back to the tokens:
//   out_TD[t] = residual_TD[t] + sum_k row_RD[slot_row_TK[t,k]], k ascending. out_TD may be residual_TD.
SY_OPERATOR(moe_combine_forward, Tensor out_TD, Tensor residual_TD, Tensor row_RD, Tensor slot_row_TK,
            Context& ctx);
// drow_RD[slot_row_TK[t,k]] = dout_TD[t]. Set.
SY_OPERATOR(moe_combine_backward, Tensor drow_RD, Tensor dout_TD, Tensor slot_row_TK, Context& ctx);

}  // namespace switchyard::ops
