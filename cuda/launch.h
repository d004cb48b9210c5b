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

// The number as a grid's first dimension. Throws std::logic_error beyond what that may be.
inline unsigned blocks(std::int64_t n) {
  SY_CHECK(n >= 0 && n <= 0x7fffffff, "a grid of {} blocks", n);
  return static_cast<unsigned>(n);
}
// The same of its second and third.
inline unsigned blocks_across(std::int64_t n) {
  SY_CHECK(n >= 0 && n <= 65535, "a grid of {} blocks across", n);
  return static_cast<unsigned>(n);
}

struct Launch {
  dim3 grid;                     // no blocks: nothing is started
  unsigned threads;              // of a block
  std::size_t shared_bytes = 0;  // dynamic
};

// A block has 48 KiB of shared memory, static and dynamic together, unless more is asked for. No kernel with
// dynamic shared memory has more than 32 KiB of static: with so much of the dynamic there is no need to ask.
constexpr std::size_t kUnaskedDynamicBytes = 16 * 1024;

// Starts kernel(args...), each argument converted to the parameter's type.
template <class... P, class... A>
void launch(const char* op, void (*kernel)(P...), const Launch& shape, Context& ctx, A... args) {
  static_assert(sizeof...(P) == sizeof...(A));
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
  const auto* const function = reinterpret_cast<const void*>(kernel);
  note_launch(op, function);
  if (shape.shared_bytes > kUnaskedDynamicBytes) ask_for_shared_bytes(op, function, shape.shared_bytes);
#ifdef SWITCHYARD_SIMT
  simt::enqueue(stream_of(ctx), [=] {
    simt::launch(
        op, shape.grid, {shape.threads, 1, 1}, shape.shared_bytes, [=] { kernel(static_cast<P>(args)...); },
        function);
  });
  const cudaError_t started = cudaSuccess;
#else
  const auto start = [&](P... values) {
    void* pointers[] = {const_cast<void*>(static_cast<const void*>(&values))...};
    return cudaLaunchKernel(function, shape.grid, dim3(shape.threads), pointers, shape.shared_bytes,
                            stream_of(ctx));
  };
  const cudaError_t started = start(static_cast<P>(args)...);
#endif
  const cudaError_t left = cudaGetLastError();  // always: what nobody asks for is charged to the next launch
  if (started != cudaSuccess || left != cudaSuccess)
    throw_cuda(started != cudaSuccess ? started : left, op, __FILE__, __LINE__);
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
