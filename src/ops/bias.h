// Biases of linear layers.   T rows (may be strided), N outputs
#pragma once

#include "ops/operator.h"

namespace switchyard::ops {

// out_TN[t] += bias_N
SY_OPERATOR(bias_forward, Tensor out_TN, Tensor bias_N, Context& ctx);
// dbias_N += sum over rows of dout_TN, in fixed blocks, in ascending order.
SY_OPERATOR(bias_backward, Tensor dbias_N, Tensor dout_TN, Context& ctx);

}  // namespace switchyard::ops
