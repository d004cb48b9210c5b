// Biases of linear layers on the device; shapes: ops/bias.h. out_TN and bias_N, or dout_TN, f32 or bf16;
// dbias_N is f32 always.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cuda {

void bias_forward(Tensor out_TN, Tensor bias_N, Context& ctx);
void bias_backward(Tensor dbias_N, Tensor dout_TN, Context& ctx);

}  // namespace switchyard::ops::cuda
