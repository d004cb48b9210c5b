// Where a run computes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "ops/operator.h"

namespace switchyard::ops {

// The device that was requested: "cpu"; "cuda"; "auto": cuda where a usable one is found, the CPU
// elsewhere. Makes memory of that device possible (core/device_memory.h).
//   Throws InputError where "cuda" is requested and unavailable: no CUDA backend in this program, no driver, no
//   device, or one older than compute capability 8.0.
Device choose_device(const std::string& requested);

// What there is to say of a device at the start of a run: "NVIDIA H100 80GB HBM3, 79.1 GiB".
std::string describe_device(Device device);

// Bytes that can still be taken on a device; no value: of the CPU, which does not say.
std::optional<std::int64_t> free_memory(Device device);

// Gives the run the stream that all of its work goes to. On the CPU: nothing.
void open_stream(Context& ctx);

// to = from in the run's order: from lies in staging memory (core/device_memory.h) and must not change until
// the run has been waited for. Contiguous, same shape and dtype. On the CPU a copy.
SY_OPERATOR(upload, Tensor to, Tensor from, Context& ctx);

}  // namespace switchyard::ops
