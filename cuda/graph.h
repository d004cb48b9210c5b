// Work that a stream has been given, recorded once and replayed with one call: a CUDA graph.
#pragma once

#include <cstdint>

#include "core/context.h"

namespace switchyard::ops::cuda {

class Graph {
 public:
  Graph() = default;
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  // What follows on the run's stream is recorded and not done, up to end(). Throws RunError, as whatever waits
  // for the device or allocates its memory in between does.
  void begin(Context& ctx);
  void end(Context& ctx);
  void abandon(Context& ctx) noexcept;  // in place of end(): forgets what was recorded
  void launch(Context& ctx);
  std::int64_t n_nodes() const { return n_nodes_; }

 private:
  void* exec_ = nullptr;
  std::int64_t n_nodes_ = 0;
};

// The stream of a run: the default stream cannot be recorded. One for the process.
void* run_stream();

}  // namespace switchyard::ops::cuda
