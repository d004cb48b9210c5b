// From a raw measure of each token to a number of experts.   T tokens
#pragma once

#include "ops/operator.h"

namespace switchyard::ops {

// c_T = sigmoid((raw_T - mean_1) / sqrt(variance_1)), set; 1/2 where the variance is 0: nothing is known yet.
// mean_1, variance_1: of raw_T's type.
SY_OPERATOR(complexity_calibrated, Tensor c_T, Tensor raw_T, Tensor mean_1, Tensor variance_1, Context& ctx);
// c_T = 1 where raw_T > threshold, else 0. Set.
SY_OPERATOR(complexity_above, Tensor c_T, Tensor raw_T, double threshold, Context& ctx);
// count_T (i32) = floor(least + (most - least) c_T + 1/2), set.
SY_OPERATOR(slot_count, Tensor count_T, Tensor c_T, std::int64_t least, std::int64_t most, Context& ctx);
// moments_3 (f64, set) = number of tokens with token_T >= 0, the sum of their raw_T and of its squares. The
// order is a function of the number of tokens. Where moments_3 lies on the host and the run does not, the call
// waits.
SY_OPERATOR(token_moments, Tensor moments_3, Tensor raw_T, Tensor token_T, Context& ctx);

}  // namespace switchyard::ops
