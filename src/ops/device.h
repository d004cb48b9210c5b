// Where a run computes.
#pragma once

#include <string>

#include "core/context.h"

namespace switchyard::ops {

// The device that a wish stands for: "cpu"; "cuda"; "auto": cuda where a usable one is found, the CPU
// elsewhere. Makes memory of that device possible (core/device_memory.h).
//   Throws InputError where "cuda" is wished and cannot be: no CUDA backend in this program, no driver, no
//   device, or one older than compute capability 8.0.
Device choose_device(const std::string& wish);

// What there is to say of a device at the start of a run: "NVIDIA H100 80GB HBM3, 79.1 GiB".
std::string describe_device(Device device);

}  // namespace switchyard::ops
