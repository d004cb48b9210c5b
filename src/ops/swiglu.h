// SwiGLU (Shazeer, arXiv 2002.05202).   R rows, F width, E experts; silu(g) = g * sigmoid(g)
#pragma once

#include "ops/operator.h"

namespace switchyard::ops {

// out_RF = silu(gate) * up, where gate_up_R2F holds the gate in its first F columns and up in the others. Set.
SY_OPERATOR(swiglu_forward, Tensor out_RF, Tensor gate_up_R2F, Context& ctx);

// dgate = dout * up * sigmoid(gate) * (1 + gate * (1 - sigmoid(gate)));  dup = dout * silu(gate). Set.
// dgate_up_R2F may be gate_up_R2F.
SY_OPERATOR(swiglu_backward, Tensor dgate_up_R2F, Tensor dout_RF, Tensor gate_up_R2F, Context& ctx);

// Of experts: row r counts weight_R[r] times. The product that follows is linear, so that this weighs the
// experts' outputs, and their backward pass finds the weight's gradient in rows that it reads anyway.
// Rows from offset_Ep[E] on belong to no expert and are neither read nor written. Beside rows of bf16 the
// weights and their gradients are f32.
// out_RF[r] = weight_R[r] * silu(gate) * up. Set.
SY_OPERATOR(expert_swiglu_forward, Tensor out_RF, Tensor gate_up_R2F, Tensor weight_R, Tensor offset_Ep,
            Context& ctx);
// dgate, dup: as above with weight_R[r] * dout in dout's place;  dweight_R[r] = sum_f dout * silu(gate) * up.
// All set. dgate_up_R2F may be gate_up_R2F.
SY_OPERATOR(expert_swiglu_backward, Tensor dgate_up_R2F, Tensor dweight_R, Tensor dout_RF, Tensor gate_up_R2F,
            Tensor weight_R, Tensor offset_Ep, Context& ctx);

}  // namespace switchyard::ops
