// Sums and maxima over a warp and over a block, in a fixed order: the same bits in every run.
#pragma once

#include <cuda_runtime.h>

#include "elements.h"
#include "launch.h"

namespace switchyard::ops::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarp = 32;

struct Sum {
  template <class T>
  static __device__ __forceinline__ T of(T a, T b) {
    return a + b;
  }
};
struct Max {
  template <class T>
  static __device__ __forceinline__ T of(T a, T b) {
    return a > b ? a : b;  // a NaN in b stays, one in a goes: check for NaN elsewhere
  }
};

// Every lane receives the result. All 32 lanes take part.
template <class Op, class T>
__device__ __forceinline__ T reduce_warp(T value) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
    value = Op::of(value, __shfl_xor_sync(kFullWarp, value, lanes));
  return value;
}

// The same over each run of `lanes` lanes, a power of two up to 32. All 32 lanes take part.
template <class Op, class T>
__device__ __forceinline__ T reduce_lanes(T value, int lanes) {
  SY_UNROLL
  for (int step = kWarp / 2; step > 0; step /= 2) {
    if (step < lanes) value = Op::of(value, __shfl_xor_sync(kFullWarp, value, step));
  }
  return value;
}

// The sum of the values of this lane and of those before it. All 32 lanes take part.
template <class T>
__device__ __forceinline__ T prefix_sum_warp(T value) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int lanes = 1; lanes < kWarp; lanes *= 2) {
    const T before = __shfl_up_sync(kFullWarp, value, static_cast<unsigned>(lanes));
    if (lane >= lanes) value += before;
  }
  return value;
}

template <class T, int kThreads>
struct BlockReduction {
  T of_warp[kThreads / kWarp];
};
// Every thread receives the result. All kThreads threads of the block take part. May be called again at once.
template <class Op, int kThreads, class T>
__device__ __forceinline__ T reduce_block(T value) {
  static_assert(kThreads % kWarp == 0 && kThreads <= 1024);
  auto& shared = static_shared<BlockReduction<T, kThreads>>();
  value = reduce_warp<Op>(value);
  if constexpr (kThreads == kWarp) return value;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  if (threadIdx.x % kWarp == 0) shared.of_warp[warp] = value;
  __syncthreads();
  value = shared.of_warp[0];
  for (int w = 1; w < kThreads / kWarp; ++w) value = Op::of(value, shared.of_warp[w]);
  __syncthreads();  // before the next call writes
  return value;
}

}  // namespace switchyard::ops::cuda
