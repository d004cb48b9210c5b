// What lies between a router's scores and its losses.   T tokens of B sequences, E experts, K slots a token
// A token is padding where token_T is negative: it has only free slots and counts in no sum.
#pragma once

#include "ops/operator.h"

namespace switchyard::ops {

// Added to a sum of sigmoid scores before it divides, as in DeepSeek-V3: far from every expert all scores of a
// token are 0.
constexpr double kScoreSumEps = 1e-20;

struct SlotWeighting {
  bool normalise = false;  // divide by the sum over the token's slots, plus eps
  double scale = 1.0;      // multiplies the result
  double eps = 0.0;
};

// weight_TK = scale * chosen_TK, divided by (its sum over the token's slots + eps) if `normalise`; 0 in free
// slots. Set.
SY_OPERATOR(slot_weights_forward, Tensor weight_TK, Tensor chosen_TK, Tensor expert_TK,
            const SlotWeighting& weighting, Context& ctx);

// The gradient with respect to all scores: dscore_TE[t, expert[t,k]] = d/dchosen[t,k], 0 elsewhere. Set.
//   normalised: dchosen_k = (scale dweight_k - sum_j dweight_j weight_j) / (sum_j chosen_j + eps);
//   else        dchosen_k = scale dweight_k
SY_OPERATOR(slot_weights_backward, Tensor dscore_TE, Tensor dweight_TK, Tensor weight_TK, Tensor chosen_TK,
            Tensor expert_TK, const SlotWeighting& weighting, Context& ctx);

// Sums over the tokens of each sequence that are not padding, all set, in double and in token order:
//   count_BE i32: slots on each expert;  prob_sum_BE f64: sum of prob_TE;  lse2_sum_B f64: sum of lse_T^2.
SY_OPERATOR(routing_sums, Tensor count_BE, Tensor prob_sum_BE, Tensor lse2_sum_B, Tensor expert_TK,
            Tensor prob_TE, Tensor lse_T, Tensor token_T, Context& ctx);

// For the tokens that are not padding: dprob_TE[t] += dprob_BE[sequence of t].   dprob_BE f64.
SY_OPERATOR(add_sequence_gradient, Tensor dprob_TE, Tensor dprob_BE, Tensor token_T, Context& ctx);

// d/dlogit of  dz * sum_t lse_T[t]^2  over the tokens that are not padding:
//   dlogit_TE[t] += 2 dz lse_T[t] prob_TE[t]
SY_OPERATOR(z_loss_backward, Tensor dlogit_TE, Tensor prob_TE, Tensor lse_T, Tensor token_T, double dz,
            Context& ctx);

}  // namespace switchyard::ops
