// Memory of the device and the way to it.
#pragma once

#include <cstdint>

#include "core/context.h"

namespace switchyard::cuda {

// Makes device tensors possible: arenas and scratch space of Device::cuda take their memory from here. Once,
// before the first of them.
void use_device_memory();

// Copies a contiguous tensor; one of the two lies on the device, or both do. Same shape and dtype. In the order
// of the run's stream; where the host takes part, done when it returns.
void copy(const Tensor& to, const Tensor& from, Context& ctx);

// The tensor itself where it lies on the device, else a copy of it in scratch space.
Tensor on_device(const Tensor& tensor, Context& ctx);

// For a result that may be wanted on the host: a kernel sets the room, deliver() brings it to where it belongs.
// A result on the device is its own room, and nothing waits.
Tensor room_for(const Tensor& result, Context& ctx);
void deliver(const Tensor& result, const Tensor& room, Context& ctx);

// Waits for all work on the run's stream. Throws RunError where a kernel has failed.
void synchronise(Context& ctx);

}  // namespace switchyard::cuda
