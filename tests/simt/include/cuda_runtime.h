// What switchyard's kernels and their launchers use of the CUDA toolkit, for a plain C++ compiler: kernels run
// on the CPU (../engine.h), device memory is host memory with marks around it, streams are in order because all
// is done at once. Names and meanings are the toolkit's (CUDA C++ Programming Guide); what is not here is not
// emulated.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "../engine.h"

// ---- the language ----
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define threadIdx (::simt::thread_index())
#define blockIdx (::simt::block_index())
#define blockDim (::simt::block_dim())
#define gridDim (::simt::grid_dim())
constexpr int warpSize = static_cast<int>(simt::kWarpSize);

using dim3 = simt::Dim3;

// ---- vector types ----
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// ---- barriers and warp-wide operations ----
inline void __syncthreads() { simt::sync_block(); }
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace simt::detail {

struct Nothing {};
inline void complete_nothing(void* const[kWarpSize]) {}

template <class T>
struct Shuffle {
  T value;
  unsigned source;
  T result;
};
template <class T>
void complete_shuffle(void* const args[kWarpSize]) {
  for (unsigned l = 0; l < kWarpSize; ++l) {
    if (!args[l]) continue;
    auto& to = *static_cast<Shuffle<T>*>(args[l]);
    const auto* from = to.source < kWarpSize ? static_cast<const Shuffle<T>*>(args[to.source]) : nullptr;
    to.result = from ? from->value : to.value;
  }
}
template <class T>
T shuffle(unsigned mask, T value, unsigned source, const char* operation) {
  Shuffle<T> args{value, source, value};
  meet_warp(mask, operation, &args, complete_shuffle<T>);
  return args.result;
}
inline unsigned segment_start(unsigned width) { return lane() / width * width; }

struct Vote {
  bool predicate;
  unsigned result;
};
inline void complete_vote(void* const args[kWarpSize]) {
  unsigned bits = 0;
  for (unsigned l = 0; l < kWarpSize; ++l) {
    if (args[l] && static_cast<const Vote*>(args[l])->predicate) bits |= 1u << l;
  }
  for (unsigned l = 0; l < kWarpSize; ++l) {
    if (args[l]) static_cast<Vote*>(args[l])->result = bits;
  }
}
inline unsigned vote(unsigned mask, bool predicate, const char* operation) {
  Vote args{predicate, 0};
  meet_warp(mask, operation, &args, complete_vote);
  return args.result;
}

template <class T>
struct Match {
  T value;
  unsigned result;
};
template <class T>
void complete_match(void* const args[kWarpSize]) {
  for (unsigned l = 0; l < kWarpSize; ++l) {
    if (!args[l]) continue;
    auto& to = *static_cast<Match<T>*>(args[l]);
    for (unsigned other = 0; other < kWarpSize; ++other) {
      if (args[other] && static_cast<const Match<T>*>(args[other])->value == to.value) to.result |= 1u << other;
    }
  }
}

}  // namespace simt::detail

inline void __syncwarp(unsigned mask = simt::kFullMask) {
  simt::detail::Nothing args;
  simt::meet_warp(mask, "__syncwarp", &args, simt::detail::complete_nothing);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {
  const unsigned w = static_cast<unsigned>(width);
  return simt::detail::shuffle(mask, value, simt::detail::segment_start(w) + static_cast<unsigned>(source) % w,
                               "__shfl_sync");
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize) {
  const unsigned w = static_cast<unsigned>(width), source = simt::lane() ^ static_cast<unsigned>(lanes);
  return simt::detail::shuffle(mask, value, source < simt::detail::segment_start(w) + w ? source : simt::lane(),
                               "__shfl_xor_sync");
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  const unsigned start = simt::detail::segment_start(static_cast<unsigned>(width));
  return simt::detail::shuffle(mask, value, simt::lane() < start + delta ? simt::lane() : simt::lane() - delta,
                               "__shfl_up_sync");
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  const unsigned w = static_cast<unsigned>(width), source = simt::lane() + delta;
  return simt::detail::shuffle(mask, value, source < simt::detail::segment_start(w) + w ? source : simt::lane(),
                               "__shfl_down_sync");
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return simt::detail::vote(mask, predicate != 0, "__ballot_sync");
}
inline int __any_sync(unsigned mask, int predicate) {
  return simt::detail::vote(mask, predicate != 0, "__any_sync") != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return simt::detail::vote(mask, predicate == 0, "__all_sync") == 0;
}
// The lanes whose value is the caller's.
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  simt::detail::Match<T> args{value, 0};
  simt::meet_warp(mask, "__match_any_sync", &args, simt::detail::complete_match<T>);
  return args.result;
}

// ---- arithmetic ----
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline unsigned __umulhi(unsigned x, unsigned y) {
  return static_cast<unsigned>((static_cast<std::uint64_t>(x) * y) >> 32);
}
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline int __float_as_int(float x) { return static_cast<int>(__float_as_uint(x)); }
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<unsigned>(bits)); }
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, T value) {
  *p = value;
}

// ---- atomics: one thread of the operating system runs all, so plain arithmetic is atomic ----
template <class T>
T atomicAdd(T* p, T value) {
  const T old = *p;
  *p = static_cast<T>(old + value);
  return old;
}
template <class T>
T atomicMax(T* p, T value) {
  const T old = *p;
  *p = std::max(old, value);
  return old;
}
template <class T>
T atomicMin(T* p, T value) {
  const T old = *p;
  *p = std::min(old, value);
  return old;
}
template <class T>
T atomicExch(T* p, T value) {
  const T old = *p;
  *p = value;
  return old;
}
template <class T>
T atomicCAS(T* p, T compare, T value) {
  const T old = *p;
  if (old == compare) *p = value;
  return old;
}

// ---- the runtime ----
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorStreamCaptureUnsupported = 900
};
struct CUstream_st;
using cudaStream_t = CUstream_st*;
enum cudaMemcpyKind {
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3,
  cudaMemcpyDefault = 4
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

inline const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaErrorStreamCaptureUnsupported) return "operation not permitted when stream is capturing";
  return error == cudaSuccess ? "no error" : "an error of the emulator";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
struct cudaDeviceProp {
  char name[256];
  std::size_t totalGlobalMem;
  int major, minor;
};
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* prop, int) {
  *prop = {"the emulator", simt::kDeviceBytes, simt::capability.major, simt::capability.minor};
  return cudaSuccess;
}
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = simt::capability.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = simt::capability.major;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = simt::capability.minor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(simt::max_shared_bytes());
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}
inline cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  if (simt::is_recording()) return cudaErrorStreamCaptureUnsupported;
  if (simt::allocated_bytes() + bytes > simt::kDeviceBytes) return cudaErrorMemoryAllocation;
  *memory = simt::allocate(bytes);
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* memory) {
  simt::release(memory);
  return cudaSuccess;
}
inline cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *total = simt::kDeviceBytes;
  *free = *total - simt::allocated_bytes();
  return cudaSuccess;
}
inline cudaError_t cudaMallocHost(void** memory, std::size_t bytes) {
  *memory = std::malloc(bytes);
  return cudaSuccess;
}
inline cudaError_t cudaFreeHost(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                                   cudaStream_t) {
  simt::enqueue([=] {
    if (bytes > 0) std::memmove(to, from, bytes);
  });
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int byte, std::size_t bytes, cudaStream_t) {
  simt::enqueue([=] {
    if (bytes > 0) std::memset(to, byte, bytes);
  });
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  if (simt::is_recording()) return cudaErrorStreamCaptureUnsupported;
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
inline cudaError_t cudaMemset(void* to, int byte, std::size_t bytes) {
  if (simt::is_recording()) return cudaErrorStreamCaptureUnsupported;
  return cudaMemsetAsync(to, byte, bytes, nullptr);
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return simt::is_recording() ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() { return cudaStreamSynchronize(nullptr); }

enum { cudaStreamNonBlocking = 1 };
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  static char streams[1];
  *stream = reinterpret_cast<cudaStream_t>(streams);
  return cudaSuccess;
}

// ---- graphs ----
using cudaGraph_t = simt::Recording*;
using cudaGraphExec_t = simt::Recording*;
using cudaGraphNode_t = void*;
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal = 0 };
inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (stream == nullptr || simt::is_recording()) return cudaErrorStreamCaptureUnsupported;
  simt::begin_recording();
  return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  *graph = simt::end_recording();
  return *graph != nullptr ? cudaSuccess : cudaErrorInvalidValue;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new simt::Recording(*graph);
  return cudaSuccess;
}
inline cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, std::size_t* n_nodes) {
  *n_nodes = graph->work.size();
  return cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
  for (const auto& work : exec->work) work();
  return cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
