// Memory of the device and the way to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/context.h"

namespace switchyard::ops::cuda {

// Why no device can be used: no driver, no device, or one that is too old. Empty: one can.
std::string unavailable_reason();
// Its name and memory.
std::string description();

// Whether code for sm_90a runs here: on compute capability 9.0 and nothing else.
bool device_has_wgmma();
int multiprocessors();
// The most shared memory that a block may ask for.
std::size_t shared_bytes_of_block();
// Throws RunError, naming the operator, where a block of it asks for more.
void check_shared_bytes(const char* op, std::size_t bytes);
std::int64_t free_memory();  // bytes

// Makes device tensors possible: arenas and scratch space of Device::cuda take their memory from here. Once,
// before the first of them.
void use_device_memory();

// Waits for all work on the run's stream. Throws RunError where a kernel has failed.
void synchronise(Context& ctx);

}  // namespace switchyard::ops::cuda
