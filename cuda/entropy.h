// Entropy of a softmax on the device; shapes and formulas: ops/entropy.h. All f32 but the
// sum of tokens.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cuda {

void softmax_entropy_forward(Tensor entropy_T, Tensor logit_TE, Tensor prob_TE, Tensor lse_T, Context& ctx);
void softmax_entropy_backward(Tensor dlogit_TE, Tensor entropy_T, Tensor logit_TE, Tensor prob_TE, Tensor lse_T,
                              Tensor skip_T, double dentropy, Context& ctx);
void sum_of_tokens(Tensor sum_1, Tensor x_T, Tensor skip_T, Context& ctx);

}  // namespace switchyard::ops::cuda
