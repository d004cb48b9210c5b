// Random numbers for tensors.   T rows of N elements
#pragma once

#include "core/context.h"
#include "core/noise_place.h"
#include "core/rng.h"

namespace switchyard::ops {

// x_TN[t,n] += sigma * the standard normal value at index (first + t) * N + n of the stream of rng's seed and
// purpose that is the place's step and layer; first: the place of the micro-batch's first token.
void add_normal(Tensor x_TN, const Rng& rng, const NoisePlace& place, double sigma, Context& ctx);

}  // namespace switchyard::ops
