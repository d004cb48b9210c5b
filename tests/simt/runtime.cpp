// Devices, their memory and copies to and from it, as the CUDA runtime gives them.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "host_memory.h"
#include "include/cuda_runtime.h"
#include "marked.h"
#include "watcher.h"

namespace {

int current = 0;  // as the process counts them
cudaError_t last_error = cudaSuccess;

std::vector<int> visible_devices() {
  const char* const set = std::getenv("SIMT_DEVICES");
  const int n = set ? std::atoi(set) : 1;
  std::vector<int> devices;
  const char* rest = std::getenv("CUDA_VISIBLE_DEVICES");
  if (rest == nullptr) {
    for (int device = 0; device < n; ++device) devices.push_back(device);
    return devices;
  }
  for (char* end = nullptr;; rest = end + 1) {
    const long device = std::strtol(rest, &end, 10);
    if (end == rest || device < 0 || device >= n) break;  // what comes behind is not seen either
    devices.push_back(static_cast<int>(device));
    if (*end != ',') break;
  }
  return devices;
}
// SIMT_DEVICE_BYTES: of each device, "1000000,500000"; the last number holds for those behind, too.
std::size_t device_bytes(int device) {
  std::size_t bytes = simt::kDeviceBytes;
  const char* rest = std::getenv("SIMT_DEVICE_BYTES");
  for (int i = 0; rest != nullptr && i <= visible_devices()[static_cast<std::size_t>(device)]; ++i) {
    char* end = nullptr;
    bytes = std::min<std::size_t>(std::strtoull(rest, &end, 10), simt::kDeviceBytes);
    rest = *end == ',' ? end + 1 : nullptr;
  }
  return bytes;
}
std::size_t free_bytes() {
  const std::size_t all = device_bytes(current), taken = simt::allocated_bytes();
  return all > taken ? all - taken : 0;
}
bool is_seen(int device) { return device >= 0 && device < static_cast<int>(visible_devices().size()); }

cudaError_t refuse_in_recording() {
  simt::spoil_recording();
  return simt::failed(cudaErrorStreamCaptureUnsupported);
}

// Pageable: the host waits until copies from and to it are done.
bool is_pageable(const void* memory) {
  return !simt::is_device_memory(memory) && !simt::is_page_locked(memory);
}

}  // namespace

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t simt::failed(cudaError_t error) { return last_error = error; }

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorDeviceUninitialized:
      return "invalid device context";
    case cudaErrorAlreadyMapped:
      return "resource already mapped";
    case cudaErrorPeerAccessUnsupported:
      return "peer access is not supported between these two devices";
    case cudaErrorInvalidResourceHandle:
      return "invalid resource handle";
    case cudaErrorNotReady:
      return "device not ready";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureUnmatched:
      return "capture was not ended in the same stream as it began";
    case cudaErrorStreamCaptureUnjoined:
      return "capturing stream has unjoined work";
    case cudaErrorStreamCaptureIsolation:
      return "dependency created on uncaptured work in another stream";
    case cudaErrorStreamCaptureImplicit:
      return "operation would make the legacy stream depend on a capturing blocking stream";
    case cudaErrorCapturedEvent:
      return "operation not permitted on an event last recorded in a capturing stream";
  }
  return "an error of the emulator";
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = static_cast<int>(visible_devices().size());
  return *count > 0 ? cudaSuccess : simt::failed(cudaErrorNoDevice);
}
cudaError_t cudaGetDevice(int* device) {
  *device = current;
  return is_seen(current) ? cudaSuccess : simt::failed(cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int device) {
  if (!is_seen(device)) return simt::failed(cudaErrorInvalidDevice);
  if (device != current && simt::allocated_bytes() > 0)
    throw std::runtime_error("emulator: device " + std::to_string(device) +
                             " is chosen while memory of device " + std::to_string(current) +
                             " is held; a process uses one device");
  current = device;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* prop, int device) {
  if (!is_seen(device)) return simt::failed(cudaErrorInvalidDevice);
  const int number = visible_devices()[static_cast<std::size_t>(device)];
  *prop = {"the emulator",         {}, device_bytes(device), simt::capability.major,
           simt::capability.minor, 0,  16 * number + 16,     0};
  std::memcpy(prop->uuid.bytes, "emulated device", 15);
  prop->uuid.bytes[15] = static_cast<char>(std::getenv("SIMT_SAME_UUID") ? 0 : number);
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (!is_seen(device)) return simt::failed(cudaErrorInvalidDevice);
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
  return simt::failed(cudaErrorInvalidValue);
}
cudaError_t cudaDeviceGetPCIBusId(char* text, int bytes, int device) {
  cudaDeviceProp prop;
  if (const cudaError_t error = cudaGetDeviceProperties(&prop, device)) return error;
  const int length = std::snprintf(
      text, static_cast<std::size_t>(bytes), "%04X:%02X:%02X.0", static_cast<unsigned>(prop.pciDomainID),
      static_cast<unsigned>(prop.pciBusID), static_cast<unsigned>(prop.pciDeviceID));
  return length < bytes ? cudaSuccess : simt::failed(cudaErrorInvalidValue);
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  if (!is_seen(device) || !is_seen(peer)) return simt::failed(cudaErrorInvalidDevice);
  *can = device != peer && !std::getenv("SIMT_NO_PEERS");
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  *attributes = {simt::static_shared_bytes(function)};
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute, int value) {
  const auto bytes = static_cast<std::size_t>(value);
  if (simt::static_shared_bytes(function) + bytes > simt::max_shared_bytes())
    return simt::failed(cudaErrorInvalidValue);
  simt::ask_for_shared_bytes(function, bytes);
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  static int number = 0;
  const char* const failing = std::getenv("SIMT_FAIL_MALLOC");
  if (simt::is_recording()) return refuse_in_recording();
  if (++number == (failing ? std::atoi(failing) : 0) || bytes > free_bytes())
    return simt::failed(cudaErrorMemoryAllocation);
  *memory = simt::allocate(bytes);
  return cudaSuccess;
}
// What frees memory waits for what may still use it; destructors do, so that an error there is no exception.
static cudaError_t finish_before_release() try {
  if (!simt::is_recording()) simt::finish_all();
  return cudaSuccess;
} catch (const std::runtime_error&) {
  return simt::failed(cudaErrorLaunchFailure);
}
cudaError_t cudaFree(void* memory) {
  const cudaError_t error = finish_before_release();
  simt::release(memory);
  return error;
}
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *total = device_bytes(current);
  *free = free_bytes();
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** memory, std::size_t bytes) { return cudaHostAlloc(memory, bytes, 0); }
cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned) {
  *memory = simt::lock_pages(bytes);
  return cudaSuccess;
}
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  if (host == nullptr || is_pageable(host)) return simt::failed(cudaErrorInvalidValue);
  *device = host;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
  const cudaError_t error = finish_before_release();
  simt::release_pages(memory);
  return error;
}

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* memory) try {
  if (simt::is_recording()) return refuse_in_recording();
  *handle = {};
  simt::share(memory).copy(handle->reserved, sizeof handle->reserved - 1);
  return cudaSuccess;
} catch (const std::runtime_error&) {
  return cudaErrorInvalidValue;
}
cudaError_t cudaIpcOpenMemHandle(void** memory, cudaIpcMemHandle_t handle, unsigned flags) try {
  if (simt::is_recording()) return refuse_in_recording();
  if (flags != cudaIpcMemLazyEnablePeerAccess) return cudaErrorInvalidValue;
  if (std::getenv("SIMT_NO_PEERS")) return cudaErrorPeerAccessUnsupported;
  *memory = simt::open_shared(handle.reserved);
  return cudaSuccess;
} catch (const std::runtime_error& error) {
  const std::string what = error.what();
  if (what.find("own process") != std::string::npos) return cudaErrorDeviceUninitialized;
  if (what.find("already") != std::string::npos) return cudaErrorAlreadyMapped;
  return cudaErrorInvalidResourceHandle;
}
cudaError_t cudaIpcCloseMemHandle(void* memory) try {
  const cudaError_t error = finish_before_release();
  simt::close_shared(memory);
  return error;
} catch (const std::runtime_error&) {
  return cudaErrorInvalidValue;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  simt::enqueue(stream, [=] {
    if (bytes > 0) std::memmove(to, from, bytes);
    if (simt::watcher) simt::watcher->written_by_host(to, bytes);
  });
  if (!simt::is_recording(stream) && (is_pageable(to) || is_pageable(from))) simt::finish(stream);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int byte, std::size_t bytes, cudaStream_t stream) {
  simt::enqueue(stream, [=] {
    if (bytes > 0) std::memset(to, byte, bytes);
    // With what is poison, what was there is declared void.
    if (simt::watcher && byte == simt::kPoison) simt::watcher->emptied(to, bytes);
    if (simt::watcher && byte != simt::kPoison) simt::watcher->written_by_host(to, bytes);
  });
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  if (simt::is_recording()) return refuse_in_recording();
  const cudaError_t error = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
  simt::finish(nullptr);
  return error;
}
cudaError_t cudaMemset(void* to, int byte, std::size_t bytes) {
  if (simt::is_recording()) return refuse_in_recording();
  const cudaError_t error = cudaMemsetAsync(to, byte, bytes, nullptr);
  simt::finish(nullptr);
  return error;
}
