// Random numbers for tensors.   T rows of N elements
#pragma once

#include "core/context.h"
#include "core/rng.h"

namespace switchyard::ops {

// x_TN[t,n] += sigma * the standard normal value of `rng` at index (first_row + t) * N + n.
void add_normal(Tensor x_TN, const Rng& rng, std::int64_t first_row, double sigma, Context& ctx);

}  // namespace switchyard::ops
