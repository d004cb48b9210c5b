// Layer normalisation (Ba et al., arXiv 1607.06450) with SiLU behind it, as the encoder of latent prototype
// routing has it.   T rows, D width; rows of x and dx may be strided
#pragma once

#include "ops/operator.h"

namespace switchyard::ops {

// With m, v the mean and the variance (over D) of a row: mean_T = m, rstd_T = 1 / sqrt(v + eps),
//   n = (x - m) rstd weight_D + bias_D,   out_TD = n sigmoid(n). All three set; sums in double.
SY_OPERATOR(layernorm_silu_forward, Tensor out_TD, Tensor mean_T, Tensor rstd_T, Tensor x_TD, Tensor weight_D,
            Tensor bias_D, double eps, Context& ctx);

// With s = sigmoid(n), h = (x - m) rstd, g = dout s (1 + n (1 - s)) and w = g weight:
//   dx_TD += rstd (w - mean_D(w) - h mean_D(w h))     dweight_D += sum g h      dbias_D += sum g
//   The sums over rows are made in fixed blocks, in ascending order. n is computed again.
SY_OPERATOR(layernorm_silu_backward, Tensor dx_TD, Tensor dweight_D, Tensor dbias_D, Tensor dout_TD,
            Tensor x_TD, Tensor mean_T, Tensor rstd_T, Tensor weight_D, Tensor bias_D, Context& ctx);

}  // namespace switchyard::ops
