// How alike the outputs are that a token has of its experts (the orthogonality loss of arXiv 2505.22323;
// docs/router-mathematics.md, section 3).   T tokens, K slots a token, R routed rows, D width
//
// With y_k = row_RD[slot_row_TK[t,k]] for the token's slots that are not free and u_k = y_k / sqrt(|y_k|^2 +
// 1e-20),
//   overlap(t) = the mean over pairs j != k of <u_j, u_k>^2, in [0, 1]; 0 where there is no pair.
// A factor of an output, as its routing weight is, changes nothing.
#pragma once

#include "ops/operator.h"

namespace switchyard::ops {

// Added to a squared length before it divides: an output may be 0.
constexpr double kOverlapEps = 1e-20;

// sum_1 (f64) = the sum of overlap(t) over all tokens, in token order. Set. Products and sums of bf16 rows in
// f32.
SY_OPERATOR(expert_overlap_forward, Tensor sum_1, Tensor row_RD, Tensor slot_row_TK, Context& ctx);
// For the slots that are not free, with P pairs j != k of the token, n_k = sqrt(|y_k|^2 + 1e-20):
//   drow_RD[slot_row_TK[t,j]] += 4 scale / P * sum over k != j of <u_j, u_k> (u_k - <u_j, u_k> u_j) / n_j
// the gradient of scale * sum_1.
SY_OPERATOR(expert_overlap_backward, Tensor drow_RD, Tensor row_RD, Tensor slot_row_TK, double scale,
            Context& ctx);

}  // namespace switchyard::ops
