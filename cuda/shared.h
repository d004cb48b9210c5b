// Shared memory of a block, typed: a kernel's static shared memory is one struct, which says what each part is
// for.
#pragma once

#include <cuda_runtime.h>

#ifdef SWITCHYARD_SIMT
#include "engine.h"
#endif

namespace switchyard::ops::cuda {

// The block's S: not initialised, the same for all threads. Each S is one piece of memory, wherever it is asked
// for, so a kernel has a struct of its own.
template <class S>
__device__ __forceinline__ S& static_shared() {
#ifdef SWITCHYARD_SIMT
  static const char key = 0;
  return *static_cast<S*>(simt::static_shared(&key, sizeof(S)));
#else
  __shared__ alignas(alignof(S) > 16 ? alignof(S) : 16) unsigned char bytes[sizeof(S)];
  return *reinterpret_cast<S*>(bytes);
#endif
}

// The dynamic shared memory of the launch, 16-byte aligned.
__device__ __forceinline__ void* dynamic_shared() {
#ifdef SWITCHYARD_SIMT
  return simt::dynamic_shared();
#else
  extern __shared__ __align__(128) unsigned char switchyard_dynamic_shared[];
  return switchyard_dynamic_shared;
#endif
}

}  // namespace switchyard::ops::cuda
