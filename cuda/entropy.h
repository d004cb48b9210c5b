// Entropy of a softmax on the device; shapes and formulas: ops/entropy.h. All f32. sum_of_tokens waits for the
// device; its order is fixed by the number of tokens, not that of the tokens.
#pragma once

#include "core/context.h"

namespace switchyard::cuda {

void softmax_entropy_forward(Tensor entropy_T, Tensor logit_TE, Tensor prob_TE, Tensor lse_T, Context& ctx);
void softmax_entropy_backward(Tensor dlogit_TE, Tensor entropy_T, Tensor logit_TE, Tensor prob_TE, Tensor lse_T,
                              Tensor skip_T, double dentropy, Context& ctx);
double sum_of_tokens(Tensor x_T, Tensor skip_T, Context& ctx);

}  // namespace switchyard::cuda
