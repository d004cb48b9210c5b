// ops/complexity.h on the CPU.
#pragma once

#include <array>

#include "core/tensor.h"

namespace switchyard::ops::cpu {

template <class T>
void complexity_calibrated(Tensor c_T, Tensor raw_T, double mean, double variance);
template <class T>
void complexity_above(Tensor c_T, Tensor raw_T, double threshold);
template <class T>
void slot_count(Tensor count_T, Tensor c_T, std::int64_t least, std::int64_t most);
template <class T>
std::array<double, 3> token_moments(Tensor raw_T, Tensor skip_T);

}  // namespace switchyard::ops::cpu
