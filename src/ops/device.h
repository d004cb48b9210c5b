// Where a run computes.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "ops/operator.h"

namespace switchyard::ops::cuda {
class Graph;
}

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

// Work that is the same every time it is done. On a CUDA device it is recorded as a graph, which one call
// replays: a step of a small model is otherwise as long as the host takes to start its kernels.
class Replay {
 public:
  // Does `work`: on the CPU always by calling it. On a device the first time, too (scratch space grows); the
  // second time what it starts is recorded, and from then on it is replayed without calling it. So every call
  // must start the same operators on the same memory, with the same numbers, and neither wait for the device
  // nor allocate; what it does on the host it does twice. Throws RunError where it cannot be recorded.
  void run(Context& ctx, const std::function<void()>& work);

  std::int64_t n_recorded() const;  // operations of the device; 0: nothing is recorded yet

 private:
  bool warm_ = false;
  std::shared_ptr<cuda::Graph> graph_;  // shared: a program without the backend does not know how to delete one
};

}  // namespace switchyard::ops
