// One warp a token: how such kernels are launched and what their warps are.
#pragma once

#include "launch.h"
#include "reduce.h"

namespace switchyard::ops::cuda {

constexpr int kTokenWarps = 8;  // of a block

inline Launch one_warp_each(std::int64_t n) { return {blocks(ceil_div(n, kTokenWarps)), kTokenWarps * kWarp}; }
// Which of the n this warp has; beyond n - 1 it has none.
__device__ __forceinline__ std::int64_t index_of_warp() {
  return std::int64_t{blockIdx.x} * kTokenWarps + threadIdx.x / kWarp;
}
__device__ __forceinline__ int lane_of_warp() { return static_cast<int>(threadIdx.x) % kWarp; }

// The sum of term(i), i < n, for all lanes. Lane l adds up i = l, l + 32, ... in ascending order, then the
// lanes are added up in pairs.
template <class F>
__device__ __forceinline__ auto sum_over_lanes(int n, F&& term) {
  decltype(term(0)) sum = 0;
  for (int i = lane_of_warp(); i < n; i += kWarp) sum += term(i);
  return reduce_warp<Sum>(sum);
}

// Finding an expert's slots without sorting them: the sums over its tokens are in token order then.
// Calls f(slot), by all lanes and in ascending order, for each slot below n_slots for which expert_at(slot) is
// e. All 32 lanes take part.
template <class At, class F>
__device__ __forceinline__ void for_slots_of_expert(int e, int n_slots, At&& expert_at, F&& f) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int first = 0; first < n_slots; first += kWarp) {
    const bool here = first + lane < n_slots && expert_at(first + lane) == e;
    for (unsigned found = __ballot_sync(kFullWarp, here); found != 0; found &= found - 1)
      f(first + __ffs(static_cast<int>(found)) - 1);
  }
}

constexpr int kBlockThreads = 256;
inline Launch one_thread_each(std::int64_t n) { return {blocks(ceil_div(n, kBlockThreads)), kBlockThreads}; }
// Which of the n this thread has; beyond n - 1 it has none.
__device__ __forceinline__ std::int64_t index_of_thread() {
  return std::int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
}

// An unsigned integer that orders as the float does: -0 is 0, and a NaN comes before all.
__device__ __forceinline__ unsigned ordered_bits(float x) {
  if (x != x) return 0;
  const unsigned bits = __float_as_uint(x + 0.0f);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

}  // namespace switchyard::ops::cuda
