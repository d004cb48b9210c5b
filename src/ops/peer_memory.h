// Memory of a device that the devices of other processes reach, on the same machine: their kernels read and
// write it as if it were their own.
#pragma once

#include <cstdint>
#include <string>

#include "ops/operator.h"

namespace switchyard::ops {

// So many bytes, not initialised, which stay until the process ends: others may be at them to the last. Throws
// RunError where there are none left.
void* take_peer_memory(std::int64_t bytes);
// What another process opens them by; bytes, not text.
std::string peer_memory_handle(void* memory);
// The same memory, of another process, for the device of this one; it stays open. Throws RunError where the
// device does not reach it.
void* open_peer_memory(const std::string& handle);

namespace cuda {
void* take_peer_memory(std::int64_t bytes);
std::string peer_memory_handle(void* memory);
void* open_peer_memory(const std::string& handle);
}  // namespace cuda

}  // namespace switchyard::ops
