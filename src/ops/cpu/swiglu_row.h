// SwiGLU of one row, gate and up side by side (Shazeer 2020, "GLU Variants Improve Transformer", equation 6),
// times the row's weight.
#pragma once

#include <cstdint>

#include "ops/cpu/reduce.h"
#include "ops/cpu/vector_math.h"

namespace switchyard::ops::cpu {

// out_F = weight * silu(gate_F) * up_F
template <class T>
inline void swiglu_forward_row(T* out, const T* gate_up, std::int64_t width, T weight) {
  const T *gate = gate_up, *up = gate_up + width;
#pragma omp simd
  for (std::int64_t f = 0; f < width; ++f) out[f] = weight * (gate[f] * sigmoid_of(gate[f]) * up[f]);
}

// Returns the weight's gradient.
template <class T>
inline T swiglu_backward_row(T* dgate_up, const T* dout, const T* gate_up, std::int64_t width, T weight) {
  const T *gate = gate_up, *up = gate_up + width;
  T *dgate = dgate_up, *dup = dgate_up + width;
  return sum_in_lanes<T>(width, [=](std::int64_t f) {
    const T g = gate[f], u = up[f], d = weight * dout[f], sigmoid = sigmoid_of(g),
            silu = g * sigmoid;  // before dgate and dup, which may be their memory
    const T dweight = dout[f] * (silu * u);
    dgate[f] = d * u * (sigmoid + silu * (1 - sigmoid));
    dup[f] = d * silu;
    return dweight;
  });
}

}  // namespace switchyard::ops::cpu
