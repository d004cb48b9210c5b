// The CPU version of ops/rope.h, which holds the contracts. T: float or double.
#pragma once

#include "core/context.h"
#include "core/rope_layout.h"

namespace switchyard::ops::cpu {

template <class T>
void rope_table(Tensor cos_SP, Tensor sin_SP, Tensor frequency_P, double scale);
template <class T>
void rope_forward(Tensor x_THN, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len, const RopeLayout& layout);
template <class T>
void rope_backward(Tensor dx_THN, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len, const RopeLayout& layout);

}  // namespace switchyard::ops::cpu
