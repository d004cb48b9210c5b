// SwiGLU of one element: silu(g) * u with silu(g) = g * sigmoid(g), by the fast exponential and division, a
// dozen instructions.
#pragma once

#include <cuda_runtime.h>

namespace switchyard::ops::cuda {

// Within 2e-6 of the exact one, relatively, for gates of up to 20; 0 where the exponential overflows.
__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1, 1 + __expf(-x)); }

__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

// Gradients of weight * silu(gate) * up.
struct SwiGluGradient {
  float gate, up, weight;
};
__device__ __forceinline__ SwiGluGradient swiglu_gradient(float dout, float gate, float up, float weight) {
  const float s = sigmoid(gate), d = weight * dout;
  return {d * up * s * fmaf(gate, 1 - s, 1), d * gate * s, dout * (gate * s * up)};
}

}  // namespace switchyard::ops::cuda
