// Entropy of a softmax.   T tokens, E experts
#pragma once

#include "ops/operator.h"

namespace switchyard::ops {

// entropy_T = -sum_e P log P = lse - sum_e P logit, set.   prob_TE, lse_T: of logit_TE (softmax_forward).
SY_OPERATOR(softmax_entropy_forward, Tensor entropy_T, Tensor logit_TE, Tensor prob_TE, Tensor lse_T,
            Context& ctx);
// For the tokens with token_T >= 0: dlogit_TE += -dentropy * P (logit - lse + entropy).
SY_OPERATOR(softmax_entropy_backward, Tensor dlogit_TE, Tensor entropy_T, Tensor logit_TE, Tensor prob_TE,
            Tensor lse_T, Tensor token_T, double dentropy, Context& ctx);
// sum_1 (f64, set) = the sum of x_T over the tokens with token_T >= 0, in double. The order is a function of
// the number of tokens. Where sum_1 lies on the host and the run does not, the call waits.
SY_OPERATOR(sum_of_tokens, Tensor sum_1, Tensor x_T, Tensor token_T, Context& ctx);

}  // namespace switchyard::ops
