// From a raw measure of each token to a number of experts.   T tokens
#pragma once

#include <array>

#include "core/context.h"

namespace switchyard::ops {

// c_T = sigmoid((raw_T - mean) / sqrt(variance)), set; 1/2 where the variance is 0: nothing is known yet.
void complexity_calibrated(Tensor c_T, Tensor raw_T, double mean, double variance, Context& ctx);
// c_T = 1 where raw_T > threshold, else 0. Set.
void complexity_above(Tensor c_T, Tensor raw_T, double threshold, Context& ctx);
// count_T (i32) = floor(least + (most - least) c_T + 1/2), set.
void slot_count(Tensor count_T, Tensor c_T, std::int64_t least, std::int64_t most, Context& ctx);
// Number of tokens with skip_T >= 0, the sum of their raw_T and of its squares. In double, in token order.
std::array<double, 3> token_moments(Tensor raw_T, Tensor skip_T, Context& ctx);

}  // namespace switchyard::ops
