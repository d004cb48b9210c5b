// Where a run computes.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ops/operator.h"

namespace switchyard::ops::cuda {
class Graph;
class StreamPoint;
}  // namespace switchyard::ops::cuda

namespace switchyard::ops {

// The device that was requested of a process alone: "cpu"; "cuda"; "auto": cuda where a usable one is found,
// the CPU elsewhere. Makes memory of that device possible (core/device_memory.h). Of several ranks each has its
// own (parallel/devices.h).
//   Throws InputError where "cuda" is requested and unavailable: no CUDA backend in this program, no driver, no
//   device, or one older than compute capability 8.0.
Device choose_device(const std::string& requested);

// What can be known of CUDA devices before one is chosen.
struct DeviceFacts {
  std::string name;         // "NVIDIA H100 80GB HBM3"
  std::string uuid;         // the same in every process that sees the device, and no other's
  std::string pci;          // "0000:18:00.0"
  std::string capability;   // "9.0"
  std::string unusable;     // why it cannot be used; empty: it can
  std::int64_t memory = 0;  // bytes, all there are
};
struct DeviceInventory {
  std::string unusable;  // why there is none: no CUDA backend, no driver, no device; empty: there are
  std::vector<DeviceFacts> device;        // by number: those that this process sees
  std::vector<std::array<int, 2>> apart;  // pairs of numbers: neither reaches the other's memory directly
  int driver = 0;                         // the newest CUDA that the driver knows: 12080 is 12.8; 0: no driver
  int toolkit = 0;                        // the CUDA that this program was built with; 0: none
  std::string cublas, cudnn;              // versions; empty: this program has been built without
};
DeviceInventory device_inventory();
// This process computes on the CUDA device of that number from here on: before anything else that touches one.
// Makes memory of it possible.
void use_device(int number);

// In a run of several ranks a device may wait for another rank for ever, and so nobody may block on it: once
// this is set, whoever waits for the device asks it again and again, and calls `check` every 10 ms. What that
// throws ends the waiting. An empty one: waiting blocks.
void set_device_wait_check(std::function<void()> check);

// What there is to say of a device at the start of a run: "NVIDIA H100 80GB HBM3, 79.1 GiB".
std::string describe_device(Device device);

// Bytes that can still be taken on a device; no value: of the CPU, which does not say.
std::optional<std::int64_t> free_memory(Device device);

// Waits for all that the run has started. Throws RunError where a kernel has failed. On the CPU: nothing.
void synchronise(Context& ctx);

// Gives the run the streams that all of its work goes to. On the CPU: nothing.
void open_stream(Context& ctx);

// A device loads a kernel when it is first started, and may wait for what runs on it before it does: for an
// exchange, say, in which other ranks are awaited. So ranks start all there are once before it matters, and say
// so by expect_no_new_kernels(). What is started for the first time since: how many, and the first one's
// operator.
struct LateKernels {
  std::int64_t count = 0;
  std::string first;
};
void expect_no_new_kernels();
LateKernels late_kernels();

// Work that goes on beside the run's other work, on a queue of its own: exchanges between devices, of which all
// are started on this one queue, so that all ranks start them in one order. Up to end() operators go there, and
// after what was started before. What is started from join() on waits for them, and for what came before them
// on the queue, but for none that came later: so one may stay out while others begin, end and are joined. What
// its operators read and write is left alone until join(), but for scratch space: they take the queue's, which
// only what comes later on the queue takes again. On the CPU all is done in turn. Within another one, this does
// nothing.
class Beside {
 public:
  explicit Beside(Context& ctx);
  ~Beside();  // never waits
  Beside(const Beside&) = delete;
  Beside& operator=(const Beside&) = delete;
  void end();
  void join();

 private:
  void swap();
  Context& ctx_;
  bool is_open_ = false;
  std::shared_ptr<cuda::StreamPoint> end_;  // shared: a program without the backend cannot delete one
};

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
  // nor allocate; what it does on the host it does twice.
  //   Where SWITCHYARD_NO_GRAPH is set in the environment it is called each time; where recording fails, too,
  // which a warning says with the reason. So where the run is profiled, whose operators wait for the device. A
  // recording of several ranks is one of all, with their exchanges in it: of them (`alone` is false) a failure
  // throws RunError.
  void run(Context& ctx, const std::function<void()>& work, bool alone);

  std::int64_t n_recorded() const;  // operations of the device; 0: nothing is recorded yet

 private:
  // Empty: it is recorded.
  std::string record(Context& ctx, const std::function<void()>& work);

  bool warm_ = false, is_called_ = false;
  std::shared_ptr<cuda::Graph> graph_;  // shared: a program without the backend does not know how to delete one
};

}  // namespace switchyard::ops
