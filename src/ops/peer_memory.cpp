#include "ops/peer_memory.h"

namespace switchyard::ops {

void* take_peer_memory(std::int64_t bytes) {
  if constexpr (kHasCuda) return cuda::take_peer_memory(bytes);
  SY_CHECK(false, "a program without CUDA has no device for {} bytes", bytes);
  return nullptr;
}

std::string peer_memory_handle(void* memory) {
  if constexpr (kHasCuda) return cuda::peer_memory_handle(memory);
  SY_CHECK(memory == nullptr, "a program without CUDA has no memory of a device");
  return {};
}

void* open_peer_memory(const std::string& handle) {
  if constexpr (kHasCuda) return cuda::open_peer_memory(handle);
  SY_CHECK(handle.empty(), "a program without CUDA has no memory of a device");
  return nullptr;
}

}  // namespace switchyard::ops
