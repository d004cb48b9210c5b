// How hard a token is, by the entropy of a softmax or another raw measure, and the experts that this gives it.
#pragma once

#include "ops/operator.h"

namespace switchyard::ops {

// From a raw measure of each token to a number of experts.   T tokens

// c_T = sigmoid((raw_T - mean_1) / sqrt(variance_1)), set; 1/2 where the variance is 0: nothing is known yet.
// mean_1, variance_1: of raw_T's type.
SY_OPERATOR(complexity_calibrated, Tensor c_T, Tensor raw_T, Tensor mean_1, Tensor variance_1, Context& ctx);
// c_T = 1 where raw_T > threshold, else 0. Set.
SY_OPERATOR(complexity_above, Tensor c_T, Tensor raw_T, double threshold, Context& ctx);
// count_T (i32) = floor(least + (most - least) c_T + 1/2), set. `least` may lie between two numbers.
SY_OPERATOR(slot_count, Tensor count_T, Tensor c_T, double least, std::int64_t most, Context& ctx);
// moments_3 (f64, set) = number of tokens with token_T >= 0, the sum of their raw_T and of its squares. The
// order is a function of the number of tokens. Where moments_3 lies on the host and the run does not, the call
// waits.
SY_OPERATOR(token_moments, Tensor moments_3, Tensor raw_T, Tensor token_T, Context& ctx);

// A number that is kept for each token of the vocabulary.   T tokens, V vocabulary

// raw_T = value_V[token_T], or mean_1 where that is 0: of that token nothing is known yet. known_T (i32) = the
// token, or -1 where nothing is known or the token is negative. Both set. Tokens are < V.
SY_OPERATOR(known_values, Tensor raw_T, Tensor known_T, Tensor value_V, Tensor mean_1, Tensor token_T,
            Context& ctx);
// Of the tokens with token_T >= 0: the first V of sum_2V (f64) += scale * value_T, the others += 1, each at its
// token. The order of the sum is fixed.
SY_OPERATOR(add_by_token, Tensor sum_2V, Tensor value_T, Tensor token_T, double scale, Context& ctx);

// Entropy of a softmax.   T tokens, E experts

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
