// Scores of the sigmoid router and of its successor and its choice by groups (DeepSeek-V3, arXiv 2412.19437,
// section 2.1.2).
//   T tokens, E experts in n_group groups of E/n_group neighbours, K slots a token
#pragma once

#include "ops/operator.h"

namespace switchyard::ops {

// score_TE = sigmoid(logit_TE), set. score_TE may be logit_TE.
SY_OPERATOR(sigmoid_forward, Tensor score_TE, Tensor logit_TE, Context& ctx);
// dlogit = dscore * score * (1 - score), set. dlogit_TE may be dscore_TE.
SY_OPERATOR(sigmoid_backward, Tensor dlogit_TE, Tensor dscore_TE, Tensor score_TE, Context& ctx);

// score_TE = sqrt(log(1 + exp(logit_TE))), set: DeepSeek-V4's scores, above 0 and without an upper bound.
// score_TE may be logit_TE.
SY_OPERATOR(sqrt_softplus_forward, Tensor score_TE, Tensor logit_TE, Context& ctx);
// dlogit = dscore * (1 - exp(-score^2)) / (2 score), set; 0 where the score is. dlogit_TE may be dscore_TE.
SY_OPERATOR(sqrt_softplus_backward, Tensor dlogit_TE, Tensor dscore_TE, Tensor score_TE, Context& ctx);

// choice_TE = score_TE + bias_E where the expert's group is among the topk_group groups whose two largest sums
// of score and bias add up to most (equal ones: the first), minus infinity elsewhere. Set. A group of one
// expert counts that one.
SY_OPERATOR(group_choice, Tensor choice_TE, Tensor score_TE, Tensor bias_E, std::int64_t n_group,
            std::int64_t topk_group, Context& ctx);

// chosen_TK[t,k] = score_TE[t, expert_TK[t,k]], 0 in a free slot. Set.
SY_OPERATOR(gather_slots, Tensor chosen_TK, Tensor score_TE, Tensor expert_TK, Context& ctx);

// prob_TE = score_TE / (its row sum + kScoreSumEps), set: what the balance loss takes for probabilities.
SY_OPERATOR(row_share_forward, Tensor prob_TE, Tensor score_TE, Context& ctx);
// dscore_TE += (dprob - sum_e dprob * prob) / (row sum of score_TE + kScoreSumEps)
SY_OPERATOR(row_share_backward, Tensor dscore_TE, Tensor dprob_TE, Tensor prob_TE, Tensor score_TE,
            Context& ctx);

}  // namespace switchyard::ops
