// Slots: which experts a token is sent to, with what weights, and which slots an expert drops.
//   T tokens, E experts, K slots a token
#pragma once

#include "ops/operator.h"

namespace switchyard::ops {

// Scores of a router and the choice of experts.   T tokens, E experts, K slots a token

// prob_TE = softmax over E of logit_TE;  lse_T = logsumexp. Both set. prob_TE may be logit_TE.
SY_OPERATOR(softmax_forward, Tensor prob_TE, Tensor lse_T, Tensor logit_TE, Context& ctx);
// dlogit = prob * (dprob - sum_e dprob * prob), set. dlogit_TE may be dprob_TE.
SY_OPERATOR(softmax_backward, Tensor dlogit_TE, Tensor dprob_TE, Tensor prob_TE, Context& ctx);

// The K largest of score_TE in descending order, equal scores by ascending expert. expert_TK i32 and chosen_TK
// = their scores, set. A score that is NaN is never chosen before a number. Where token_T[t] is negative
// (padding) all slots are free: expert -1, score 0. K <= E.
SY_OPERATOR(top_k, Tensor expert_TK, Tensor chosen_TK, Tensor score_TE, Tensor token_T, Context& ctx);

// expert_TK i32 = table_N[token_T[t] * K + k], N a multiple of K; -1 where token_T[t] is negative. Set.
// table_N: whole numbers, of the compute type.
SY_OPERATOR(experts_of_tokens, Tensor expert_TK, Tensor table_N, Tensor token_T, Context& ctx);

// With mean and variance over a token's experts: rstd_T = 1 / sqrt(variance + kLogitVarianceEps), unit_TE =
// (logit_TE - mean) rstd and logit_TE = scale unit. All set.
constexpr double kLogitVarianceEps = 1e-12;
SY_OPERATOR(normalise_logits_forward, Tensor logit_TE, Tensor unit_TE, Tensor rstd_T, double scale,
            Context& ctx);
// dlogit_TE, of what forward made of the logits, becomes that of the logits:
//   scale rstd (dlogit - mean(dlogit) - unit mean(dlogit unit))
SY_OPERATOR(normalise_logits_backward, Tensor dlogit_TE, Tensor unit_TE, Tensor rstd_T, double scale,
            Context& ctx);

// Slots that a router leaves free, and weights from a softmax over the slots that it fills.
//   T tokens, E experts, K slots a token. Slots are sorted: those of a token that are filled come first.

// Frees (expert -1, chosen 0) the slots behind the shortest prefix of chosen_TK whose sum reaches p. In place.
SY_OPERATOR(keep_prefix_sum, Tensor expert_TK, Tensor chosen_TK, double p, Context& ctx);
// Frees the slots from count_T[t] (i32) on. In place.
SY_OPERATOR(keep_count, Tensor expert_TK, Tensor chosen_TK, Tensor count_T, Context& ctx);
// Frees the slots whose chosen_TK is minus infinity. In place.
SY_OPERATOR(keep_finite, Tensor expert_TK, Tensor chosen_TK, Context& ctx);

// choice_TE = score_TE where it is above threshold_E, minus infinity elsewhere. Set.
SY_OPERATOR(threshold_choice, Tensor choice_TE, Tensor score_TE, Tensor threshold_E, Context& ctx);

// weight_TK = scale * softmax over the token's filled slots of chosen_TK; 0 in free slots. Set.
SY_OPERATOR(slot_softmax_forward, Tensor weight_TK, Tensor chosen_TK, Tensor expert_TK, double scale,
            Context& ctx);
// The gradient with respect to all scores, 0 for those not chosen. dscore_TE set.
//   dchosen_k = weight_k (dweight_k - sum_j dweight_j weight_j / scale)
SY_OPERATOR(slot_softmax_backward, Tensor dscore_TE, Tensor dweight_TK, Tensor weight_TK, Tensor expert_TK,
            double scale, Context& ctx);

// The capacity of experts.   T tokens, K slots a token, E experts

// An expert takes at most ceil(factor * n * K / E) slots, n the tokens that are not padding (token_T >= 0):
// those of largest weight, equal ones in order of position (token, then slot). kept_expert_TK i32 and
// kept_weight_TK are the given ones, with -1 and 0 where a slot was dropped. Both set, and
// dropped_1 i32: how many slots were dropped.
SY_OPERATOR(limit_capacity, Tensor kept_expert_TK, Tensor kept_weight_TK, Tensor dropped_1, Tensor expert_TK,
            Tensor weight_TK, Tensor token_T, std::int64_t n_experts, double factor, Context& ctx);

}  // namespace switchyard::ops
