// From a raw measure of each token to a number of experts, on the device; formulas: ops/complexity.h. All f32
// but counts and moments.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cuda {

void complexity_calibrated(Tensor c_T, Tensor raw_T, Tensor mean_1, Tensor variance_1, Context& ctx);
void complexity_above(Tensor c_T, Tensor raw_T, double threshold, Context& ctx);
void slot_count(Tensor count_T, Tensor c_T, std::int64_t least, std::int64_t most, Context& ctx);
void token_moments(Tensor moments_3, Tensor raw_T, Tensor skip_T, Context& ctx);

}  // namespace switchyard::ops::cuda
