// Memory of the device and the way to it.
#pragma once

#include <cstddef>
#include <string>

#include "core/context.h"

namespace switchyard::cuda {

// Why no device can be used: no driver, no device, or one that is too old. Empty: one can.
std::string obstacle();
// Its name and memory.
std::string description();

// The most shared memory that a block may ask for.
std::size_t shared_bytes_of_block();

// Makes device tensors possible: arenas and scratch space of Device::cuda take their memory from here. Once,
// before the first of them.
void use_device_memory();

// Waits for all work on the run's stream. Throws RunError where a kernel has failed.
void synchronise(Context& ctx);

}  // namespace switchyard::cuda
