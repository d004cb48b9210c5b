// From a raw measure of each token to a number of experts, on the device; formulas: ops/complexity.h. All f32
// but counts. token_moments waits for the device; its order is fixed by the number of tokens, not that of the
// tokens.
#pragma once

#include <array>

#include "core/context.h"

namespace switchyard::cuda {

void complexity_calibrated(Tensor c_T, Tensor raw_T, double mean, double variance, Context& ctx);
void complexity_above(Tensor c_T, Tensor raw_T, double threshold, Context& ctx);
void slot_count(Tensor count_T, Tensor c_T, std::int64_t least, std::int64_t most, Context& ctx);
std::array<double, 3> token_moments(Tensor raw_T, Tensor skip_T, Context& ctx);

}  // namespace switchyard::cuda
