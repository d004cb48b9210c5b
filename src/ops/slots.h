// Slots that a router leaves free, and weights from a softmax over the slots that it fills.
//   T tokens, E experts, K slots a token. Slots are sorted: those of a token that are filled come first.
#pragma once

#include "ops/operator.h"

namespace switchyard::ops {

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

}  // namespace switchyard::ops
