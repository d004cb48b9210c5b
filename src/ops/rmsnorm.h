// Root mean square normalisation (Zhang & Sennrich, arXiv 1910.07467), over whole rows or over each head of a
// row.
//   T rows, G groups (heads) in a row, N width of a group; rows may be strided
#pragma once

#include "ops/operator.h"

namespace switchyard::ops {

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

}  // namespace switchyard::ops
