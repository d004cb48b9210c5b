// The CPU version of ops/rope.h, which holds the contracts. T: float or double.
#pragma once

#include "core/context.h"

namespace switchyard::cpu {

template <class T>
void rope_table(Tensor cos_SP, Tensor sin_SP, double theta);
template <class T>
void rope_forward(Tensor x_THN, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len);
template <class T>
void rope_backward(Tensor dx_THN, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len);

}  // namespace switchyard::cpu
