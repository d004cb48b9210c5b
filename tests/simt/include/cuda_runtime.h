// What switchyard's kernels and their launchers use of the CUDA toolkit, for a plain C++ compiler: kernels run
// on the CPU (../engine.h), device memory is host memory with marks around it, work is done when it is given
// (../streams.h). Names and meanings are the toolkit's (CUDA C++ Programming Guide); what is not here is not
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
#include "../streams.h"

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
[[gnu::always_inline]] inline void __syncthreads() { simt::sync_block(); }
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
    if (!from) fail("a shuffle from lane " + std::to_string(to.source) + ", which takes no part in it");
    to.result = from->value;
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
// A device's functions are off by a few units in the last place, otherwise than the processor's. With
// SIMT_ULP=1 in the environment they are here: by a hash of the result, up to the bounds of the CUDA C++
// Programming Guide (Mathematical Functions), so that a test that leaves no room for them fails at home.
namespace simt {
inline float within(float exact, unsigned units) {
  static const bool varies = std::getenv("SIMT_ULP") != nullptr;
  if (!varies || !std::isfinite(exact) || exact == 0 || exact == 1) return exact;  // exact there too
  unsigned bits;
  std::memcpy(&bits, &exact, sizeof bits);
  const unsigned hash = (bits * 2654435761u) >> 8;
  bits += hash % (2 * units + 1) - units;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return std::isfinite(result) ? result : exact;
}
}  // namespace simt
// Where kernels are, these names are found before the processor's.
namespace switchyard::ops::cuda {
inline float expf(float x) { return simt::within(std::exp(x), 2); }
inline float exp2f(float x) { return simt::within(std::exp2(x), 2); }
inline float expm1f(float x) { return simt::within(std::expm1(x), 1); }
inline float logf(float x) { return simt::within(std::log(x), 1); }
inline float log1pf(float x) { return simt::within(std::log1p(x), 1); }
}  // namespace switchyard::ops::cuda
inline float __expf(float x) {
  return simt::within(std::exp(x), 2 + static_cast<unsigned>(1.173f * std::min(std::fabs(x), 1e4f)));
}
inline float __logf(float x) { return simt::within(std::log(x), 3); }
inline float __fdividef(float x, float y) { return simt::within(x / y, 2); }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float rsqrtf(float x) { return simt::within(1 / std::sqrt(x), 2); }
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

// Not compiled with hooks for accesses: what it does is told otherwise.
#define SIMT_UNWATCHED __attribute__((no_sanitize("thread")))

// ---- atomics: one thread of the operating system runs all, so plain arithmetic is atomic ----
template <class T>
SIMT_UNWATCHED T atomicAdd(T* p, T value) {
  simt::note_atomic(p, sizeof *p);
  const T old = *p;
  *p = static_cast<T>(old + value);
  return old;
}
template <class T>
SIMT_UNWATCHED T atomicMax(T* p, T value) {
  simt::note_atomic(p, sizeof *p);
  const T old = *p;
  *p = std::max(old, value);
  return old;
}
template <class T>
SIMT_UNWATCHED T atomicMin(T* p, T value) {
  simt::note_atomic(p, sizeof *p);
  const T old = *p;
  *p = std::min(old, value);
  return old;
}
template <class T>
SIMT_UNWATCHED T atomicExch(T* p, T value) {
  simt::note_atomic(p, sizeof *p);
  const T old = *p;
  *p = value;
  return old;
}
template <class T>
SIMT_UNWATCHED T atomicCAS(T* p, T compare, T value) {
  simt::note_atomic(p, sizeof *p);
  const T old = *p;
  if (old == compare) *p = value;
  return old;
}

// ---- the runtime: ../runtime.cpp, and ../streams.cpp for what has to do with streams ----
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorDeviceUninitialized = 201,
  cudaErrorAlreadyMapped = 208,
  cudaErrorPeerAccessUnsupported = 217,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorNotReady = 600,
  cudaErrorLaunchFailure = 719,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureInvalidated = 901,
  cudaErrorStreamCaptureUnmatched = 903,
  cudaErrorStreamCaptureUnjoined = 904,
  cudaErrorStreamCaptureIsolation = 905,
  cudaErrorStreamCaptureImplicit = 906,
  cudaErrorCapturedEvent = 907
};
const char* cudaGetErrorString(cudaError_t error);
// A call that fails leaves its error behind until somebody asks for it, whatever succeeds in between.
cudaError_t cudaGetLastError();
namespace simt {
cudaError_t failed(cudaError_t error);  // leaves it behind
}

using cudaStream_t = CUstream_st*;
struct CUevent_st;
using cudaEvent_t = CUevent_st*;

// Devices: SIMT_DEVICES of them (1), of which CUDA_VISIBLE_DEVICES, a list of numbers, lets the process see
// some. SIMT_SAME_UUID: all have one uuid. SIMT_NO_PEERS: none reads another's memory. One process uses one of
// them.
struct cudaUUID_t {
  char bytes[16];
};
struct cudaDeviceProp {
  char name[256];
  cudaUUID_t uuid;
  std::size_t totalGlobalMem;
  int major, minor;
  int pciDomainID, pciBusID, pciDeviceID;
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* prop, int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaDeviceGetPCIBusId(char* text, int bytes, int device);
cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);

// Kernels. What stands for one is the address of its function.
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaFuncAttributes {
  std::size_t sharedSizeBytes;  // static: what its blocks have used
};
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function);
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value);

// Memory. SIMT_FAIL_MALLOC: the number, from 1, of the cudaMalloc that finds no memory.
enum cudaMemcpyKind {
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3,
  cudaMemcpyDefault = 4
};
enum { cudaHostAllocDefault = 0, cudaHostAllocPortable = 1, cudaHostAllocMapped = 2 };
cudaError_t cudaMalloc(void** memory, std::size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total);
cudaError_t cudaMallocHost(void** memory, std::size_t bytes);
cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned flags);
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned flags);
cudaError_t cudaFreeHost(void* memory);
// Memory of a device in other processes of the machine. Stricter than CUDA: a piece is named from its beginning
// on alone, and opened once by a process.
struct cudaIpcMemHandle_t {
  char reserved[64];
};
enum { cudaIpcMemLazyEnablePeerAccess = 1 };
cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* memory);
cudaError_t cudaIpcOpenMemHandle(void** memory, cudaIpcMemHandle_t handle, unsigned flags);
cudaError_t cudaIpcCloseMemHandle(void* memory);
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* to, int byte, std::size_t bytes, cudaStream_t stream);
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemset(void* to, int byte, std::size_t bytes);

// Streams and events.
enum { cudaStreamNonBlocking = 1 };
enum { cudaEventDefault = 0, cudaEventDisableTiming = 2 };
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventSynchronize(cudaEvent_t event);

// Graphs.
using cudaGraph_t = simt::Recording*;
using cudaGraphExec_t = simt::Recording*;
using cudaGraphNode_t = void*;
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal = 0, cudaStreamCaptureModeThreadLocal = 1 };
enum cudaStreamCaptureStatus {
  cudaStreamCaptureStatusNone = 0,
  cudaStreamCaptureStatusActive = 1,
  cudaStreamCaptureStatusInvalidated = 2
};
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, std::size_t* n_nodes);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
