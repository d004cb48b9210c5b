// Work that is the same every time it is done. On a CUDA device it is recorded as a graph, which one call
// replays: a step of a small model is otherwise as long as the host takes to start its kernels.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "core/context.h"

namespace switchyard::ops::cuda {
class Graph;
}

namespace switchyard::ops {

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
