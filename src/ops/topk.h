// Scores of a router and the choice of experts.   T tokens, E experts, K slots a token
#pragma once

#include "ops/operator.h"

namespace switchyard::ops {

// prob_TE = softmax over E of logit_TE;  lse_T = logsumexp. Both set. prob_TE may be logit_TE.
SY_OPERATOR(softmax_forward, Tensor prob_TE, Tensor lse_T, Tensor logit_TE, Context& ctx);
// dlogit = prob * (dprob - sum_e dprob * prob), set. dlogit_TE may be dprob_TE.
SY_OPERATOR(softmax_backward, Tensor dlogit_TE, Tensor dprob_TE, Tensor prob_TE, Context& ctx);

// The K largest of score_TE in descending order, equal scores by ascending expert. expert_TK i32 and chosen_TK
// = their scores, set. A score that is NaN is never chosen before a number. Where token_T[t] is negative
// (padding) all slots are free: expert -1, score 0. K <= E.
SY_OPERATOR(top_k, Tensor expert_TK, Tensor chosen_TK, Tensor score_TE, Tensor token_T, Context& ctx);

}  // namespace switchyard::ops
