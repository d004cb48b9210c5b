// Memory that the devices of other processes map, by CUDA's own handles (IPC): no library has to know of it.
#include "ops/peer_memory.h"

#include <cuda_runtime.h>

#include <cstring>

#include "core/error.h"
#include "error.h"
#include "launch.h"

namespace switchyard::ops::cuda {

namespace {

// What is shared is shared by whole blocks of this size: none has anything else in it.
constexpr std::int64_t kBlock = std::int64_t{2} << 20;

}  // namespace

void* take_peer_memory(std::int64_t bytes) {
  const std::int64_t whole = ceil_div(bytes, kBlock) * kBlock;
  void* memory = nullptr;
  SY_CUDA(cudaMalloc(&memory, static_cast<std::size_t>(whole)));
  return memory;
}

std::string peer_memory_handle(void* memory) {
  cudaIpcMemHandle_t handle;
  SY_CUDA(cudaIpcGetMemHandle(&handle, memory));
  return std::string(handle.reserved, sizeof handle.reserved);
}

void* open_peer_memory(const std::string& handle) {
  cudaIpcMemHandle_t of_other;
  SY_CHECK(handle.size() == sizeof of_other.reserved, "a handle of {} bytes", handle.size());
  std::memcpy(of_other.reserved, handle.data(), handle.size());
  void* memory = nullptr;
  const cudaError_t error = cudaIpcOpenMemHandle(&memory, of_other, cudaIpcMemLazyEnablePeerAccess);
  if (error == cudaSuccess) return memory;
  (void)cudaGetLastError();
  throw_run("memory of another rank's device cannot be opened, '{}'; set parallel.token_exchange to \"all\"",
            cudaGetErrorString(error));
}

}  // namespace switchyard::ops::cuda
