// Token embedding on the device; shapes: ops/embedding.h. Rows f32 or bf16; dweight_VD is f32 always.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cuda {

void embedding_forward(Tensor out_TD, Tensor token_T, Tensor weight_VD, Context& ctx);
void embedding_backward(Tensor dweight_VD, Tensor dout_TD, Tensor token_T, Context& ctx);

}  // namespace switchyard::ops::cuda
