// ops/noise.h on the CPU.
#pragma once

#include "core/noise_place.h"
#include "core/rng.h"
#include "core/tensor.h"

namespace switchyard::ops::cpu {

template <class T>
void add_normal(Tensor x_TN, const Rng& rng, const NoisePlace& place, double sigma);

}  // namespace switchyard::ops::cpu
