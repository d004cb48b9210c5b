// The one way to start a kernel: on the run's stream, with the error checked and the operator named.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/context.h"
#include "core/error.h"
#include "device.h"
#include "error.h"

#ifdef SWITCHYARD_SIMT
#include "engine.h"
#endif

namespace switchyard::ops::cuda {

inline cudaStream_t stream_of(const Context& ctx) { return static_cast<cudaStream_t>(ctx.stream); }

// How many pieces of `size` cover n; n >= 0, size > 0.
constexpr std::int64_t ceil_div(std::int64_t n, std::int64_t size) { return (n + size - 1) / size; }

// The number as a grid dimension. Throws std::logic_error beyond what a grid's first dimension may be.
inline unsigned blocks(std::int64_t n) {
  SY_CHECK(n >= 0 && n <= 0x7fffffff, "a grid of {} blocks", n);
  return static_cast<unsigned>(n);
}

struct Launch {
  dim3 grid;                     // no blocks: nothing is started
  unsigned threads;              // of a block
  std::size_t shared_bytes = 0;  // dynamic; above 48 KiB it is asked for
};

// Starts kernel(args...), each argument converted to the parameter's type.
template <class... P, class... A>
void launch(const char* op, void (*kernel)(P...), const Launch& shape, Context& ctx, A... args) {
  static_assert(sizeof...(P) == sizeof...(A));
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
  const bool asks = shape.shared_bytes > 48 * 1024;
  if (asks) check_shared_bytes(op, shape.shared_bytes);
#ifdef SWITCHYARD_SIMT
  simt::enqueue(stream_of(ctx), [=] {
    simt::launch(op, shape.grid, {shape.threads, 1, 1}, shape.shared_bytes,
                 [&] { kernel(static_cast<P>(args)...); });
  });
#else
  if (asks) {
    SY_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                 cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shape.shared_bytes)));
  }
  const auto start = [&](P... values) {
    void* pointers[] = {const_cast<void*>(static_cast<const void*>(&values))...};
    return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), shape.grid, dim3(shape.threads), pointers,
                            shape.shared_bytes, stream_of(ctx));
  };
  cudaError_t error = start(static_cast<P>(args)...);
  if (error == cudaSuccess) error = cudaGetLastError();
  if (error != cudaSuccess) throw_cuda(error, op, __FILE__, __LINE__);
#endif
}

// Shared memory of a block, typed: a kernel's static shared memory is one struct, which says what each part is
// for.

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
