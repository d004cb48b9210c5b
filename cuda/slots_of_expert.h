// Finding an expert's slots without sorting them: the sums over its tokens are in token order then.
#pragma once

#include <cuda_runtime.h>

#include "reduce.h"

namespace switchyard::ops::cuda {

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

}  // namespace switchyard::ops::cuda
