// Normalisation of rows: by the root mean square, and layer normalisation.
#pragma once

#include "ops/operator.h"

namespace switchyard::ops {

// Root mean square normalisation (Zhang & Sennrich, arXiv 1910.07467), over whole rows or over each head of a
// row.
//   T rows, G groups (heads) in a row, N width of a group; rows may be strided

// rstd_TG[t,g] = 1 / sqrt(mean_n in[t,g,n]^2 + eps);  out[t,g,n] = in[t,g,n] * rstd_TG[t,g] * weight_N[n]. Both
// set.
//   in_TGN and out_TGN are [T, G*N] matrices, rstd_TG is [T, G]; f32|f64, the sum of squares in double.
//   out_TGN may be in_TGN.
SY_OPERATOR(rmsnorm_forward, Tensor out_TGN, Tensor rstd_TG, Tensor in_TGN, Tensor weight_N, double eps,
            Context& ctx);

// With x = in * rstd (the normalised row) and g = dout * weight:
//   din_TGN += rstd * (g - x * mean_n(g * x))        dweight_N += sum over rows and groups of dout * x
//   The sum over rows is made in fixed blocks, in ascending order.
SY_OPERATOR(rmsnorm_backward, Tensor din_TGN, Tensor dweight_N, Tensor dout_TGN, Tensor in_TGN, Tensor rstd_TG,
            Tensor weight_N, Context& ctx);

// Layer normalisation (Ba et al., arXiv 1607.06450) with SiLU behind it, as the encoder of latent prototype
// routing has it.   T rows, D width; rows of x and dx may be strided

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
