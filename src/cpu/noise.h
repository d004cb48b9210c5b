// ops/noise.h on the CPU.
#pragma once

#include "core/rng.h"
#include "core/tensor.h"

namespace switchyard::cpu {

template <class T>
void add_normal(Tensor x_TN, const Rng& rng, std::int64_t first_row, double sigma);

}  // namespace switchyard::cpu
