// SwiGLU (Shazeer, arXiv 2002.05202).   R rows, F width; silu(g) = g * sigmoid(g)
#pragma once

#include "core/context.h"

namespace switchyard::ops {

// out_RF = silu(gate) * up, where gate_up_R2F holds the gate in its first F columns and up in the others. Set.
void swiglu_forward(Tensor out_RF, Tensor gate_up_R2F, Context& ctx);

// dgate = dout * up * sigmoid(gate) * (1 + gate * (1 - sigmoid(gate)));  dup = dout * silu(gate). Set.
// dgate_up_R2F may be gate_up_R2F.
void swiglu_backward(Tensor dgate_up_R2F, Tensor dout_RF, Tensor gate_up_R2F, Context& ctx);

}  // namespace switchyard::ops
