// SimBal: how far the rows of a gate are from being orthonormal (arXiv 2506.14038; docs/router-mathematics.md,
// section 3).   E experts, B sequences
//
// With R the gate's weight, a column an expert, gram_EE = R^T R of the compute type. What a micro-batch adds is
// in proportion to its tokens: n = the sum of tokens_B, i32. Loss and sums are f64; nobody waits for them.
#pragma once

#include "ops/operator.h"

namespace switchyard::ops {

// loss_1 += coef * n * sum over all E * E numbers of |gram_EE - I|.
SY_OPERATOR(add_simbal_loss, Tensor loss_1, Tensor gram_EE, Tensor tokens_B, double coef, Context& ctx);
// slope_EE = 2 coef * n * sign(gram_EE - I), set: its product with the weight is the gradient of that term, as
// gram_EE is symmetric. slope_EE may be gram_EE.
SY_OPERATOR(simbal_slope, Tensor slope_EE, Tensor gram_EE, Tensor tokens_B, double coef, Context& ctx);

}  // namespace switchyard::ops
