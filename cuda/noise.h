// Random numbers for tensors on the device; see ops/noise.h. x_TN is f32: noise is the router's.
#pragma once

#include "core/context.h"
#include "core/noise_place.h"
#include "core/rng.h"

namespace switchyard::ops::cuda {

void add_normal(Tensor x_TN, const Rng& rng, const NoisePlace& place, double sigma, Context& ctx);

}  // namespace switchyard::ops::cuda
