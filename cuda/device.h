// Memory of the device and the way to it, its stream, and work recorded on it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "core/context.h"
#include "core/device_memory.h"
#include "ops/device.h"

namespace switchyard::ops::cuda {

// Below, "the device" is the current one: that of use_device(), or else the first that the process sees.

// Why no device can be used: no driver, no device, or one that is too old. Empty: one can.
std::string unavailable_reason();
// Its name and memory.
std::string description();

DeviceInventory inventory();  // ops::device_inventory()
void use_device(int number);

// Whether code for sm_90a runs here: on compute capability 9.0 and nothing else, unless SWITCHYARD_NO_WGMMA
// turns it off.
bool device_has_wgmma();
int multiprocessors();
// The most shared memory that a block may ask for.
std::size_t shared_bytes_of_block();
// From here on a block of the kernel may have so much dynamic shared memory, beside its static. Throws
// RunError, naming the operator, where the device has less.
void ask_for_shared_bytes(const char* op, const void* kernel, std::size_t dynamic_bytes);
// Whether somebody has turned a part of the backend off, to find out which one is to blame: the variable is set
// in the environment, to anything but 0. Says so once.
bool is_turned_off(const char* variable);
std::int64_t free_memory();   // bytes
std::int64_t total_memory();  // of the device, whatever of it is in use

// Makes device tensors possible: arenas and scratch space of Device::cuda take their memory from here. Once,
// before the first of them.
void use_device_memory();

// The device's plain memory: null where there is none left. What frees it must not throw: a failure is seen by
// the next call.
void* take_device_memory(std::int64_t bytes);
void give_device_memory(void* memory);
// Memory that is exchanged: the same, or where it is symmetric the library's by which ranks meet (nccl.cpp).
void* take_exchanged_memory(std::int64_t bytes);
void give_exchanged_memory(void* memory);

// How whoever waits does so: ops::set_device_wait_check().
void set_wait_check(std::function<void()> check);

// Waits for all work on the run's stream. Throws RunError where a kernel has failed.
void synchronise(Context& ctx);

// Work that a stream has been given, recorded once and replayed with one call: a CUDA graph.

class Graph {
 public:
  Graph() = default;
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  // What `work` starts on the run's stream is recorded and not done. Throws RunError, as whatever in it waits
  // for the device or allocates its memory does; what `work` throws is passed on.
  void record(Context& ctx, const std::function<void()>& work);
  void launch(Context& ctx);
  std::int64_t n_nodes() const { return n_nodes_; }

 private:
  void* exec_ = nullptr;
  std::int64_t n_nodes_ = 0;
};

// The stream of a run: the default stream cannot be recorded. One for the process.
void* run_stream();
void* stream_beside();

// A point in the work of a stream: what was started on it before the point was made.
class StreamPoint {
 public:
  explicit StreamPoint(void* stream);
  ~StreamPoint();
  StreamPoint(const StreamPoint&) = delete;
  StreamPoint& operator=(const StreamPoint&) = delete;
  // What is started on `other` from here on waits for all before the point, and for nothing behind it.
  void hold_back(void* other) const;

 private:
  void* event_;
};

// At each launch of a kernel, or of what a library starts some of its own for: what it is, by an address.
void note_launch(const char* op, const void* function);
void expect_no_new_kernels();  // ops::expect_no_new_kernels()
LateKernels late_kernels();

// Before and after each exchange: the device counts that it has come to it, and how long it is in it. Where it
// counts, on the host.
void begin_exchange(Context& ctx);
void end_exchange(Context& ctx);
const std::int64_t* exchanges_begun();

// Small arguments and results that live on the host: a table's frequencies, sums that all ranks add up. An
// operator that takes them from the device as well neither copies nor waits then.

// Device memory for a result: its own where it is a device tensor, else scratch space. copy_back() copies from
// there to the result.
inline Tensor device_buffer_for(const Tensor& result, Context& ctx) {
  return result.device() == Device::cuda ? result : ctx.scratch.take(result.shape(), result.dtype());
}
inline void copy_back(const Tensor& result, const Tensor& buffer) {
  if (buffer.raw() != result.raw()) copy(result, buffer);
}

// The tensor itself where it lies on the device, else a copy in scratch space.
inline Tensor on_device(const Tensor& tensor, Context& ctx) {
  const Tensor buffer = device_buffer_for(tensor, ctx);
  copy_back(buffer, tensor);
  return buffer;
}

}  // namespace switchyard::ops::cuda
