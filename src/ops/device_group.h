// Ranks that compute on a CUDA device each: how bytes get from one device's memory to another's, by a library
// (NCCL). parallel/group.h decides what ranks do with each other; this is what it asks for on a device.
//
// Everything is work on the run's stream: it is started, not waited for, and may be recorded (ops/device.h)
// where all ranks of the group record the same. All of them call the same functions in the same order, with the
// same sizes.
//   N ranks of the group, X any shape
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/parameters.h"
#include "ops/operator.h"

namespace switchyard::ops {

class DeviceGroup {
 public:
  virtual ~DeviceGroup() = default;
  DeviceGroup() = default;
  DeviceGroup(const DeviceGroup&) = delete;
  DeviceGroup& operator=(const DeviceGroup&) = delete;

  // Tensors are contiguous and lie on the device.

  // Piece p of to_NX := from_X of place p; from_X may be the own piece of to_NX.
  virtual void all_gather(const Tensor& to_NX, const Tensor& from_X, Context& ctx) = 0;
  // Piece p of to_NX := piece (own place) of from_NX of place p. The two do not overlap.
  virtual void exchange(const Tensor& to_NX, const Tensor& from_NX, Context& ctx) = 0;
  // Bytes for and from other places, all at once.
  struct Message {
    int place;
    void* data;
    std::int64_t bytes;
  };
  virtual void move(std::span<const Message> out, std::span<const Message> in, Context& ctx) = 0;

  // The library's own sums, in an order that it chooses; f32 or f64.
  // x := its sum over ranks.
  virtual void sum(const Tensor& x, Context& ctx) = 0;
  // Part p of x_P := its sum over ranks, on place p alone.
  virtual void sum_to_owners(const Tensor& x_P, std::span<const FlatRange> part_N, Context& ctx) = 0;

  // The ranks that name the same `color` are a group of their own, in the order of their places. All ranks
  // call.
  virtual std::unique_ptr<DeviceGroup> split(int color) = 0;

  // Where memory is symmetric: all memory that is exchanged (core/device_memory.h) and has been taken so far
  // becomes a window of this group. All ranks call, once, with as many pieces of the same sizes in the same
  // order, before anything is recorded; they and the process keep it to the end. Throws RunError where the
  // library gives none.
  virtual void register_memory() = 0;

  // Throws RunError where the library has met an error since, of another rank, say. From any thread; never
  // waits.
  virtual void check() = 0;
};

// What all ranks of a run must know to find each other: the first makes it and tells the others. Only where the
// library can be used (parallel/devices.h). Throws RunError.
std::string make_device_group_id();
// All ranks together, each with its device chosen (ops/device.h); waits until all have come. Throws RunError.
// `symmetric`: from here on memory that is exchanged is the library's own, which register_memory() makes known
// on all ranks; and the library moves it by copy engines, where it can, in place of multiprocessors.
std::unique_ptr<DeviceGroup> make_device_group(const std::string& id, int rank, int size,
                                               bool symmetric = false);
// Why memory cannot be symmetric; empty: as far as the library goes, it can.
std::string no_symmetric_memory_reason();
// Bytes of each piece of symmetric memory that there is, in the order in which they were taken.
std::vector<std::int64_t> symmetric_memory();
// The library's version: 22809 is 2.28.9. 0: this program was built without it; -1: it is not on this machine.
int device_group_version();
// How long this process's device has been in exchanges of all groups, in seconds: until it came to the end of
// the last one that it was waited for. Each is counted from where the device comes to it, so that it takes the
// waiting for others and the moving of bytes. 0 on the CPU.
double exchange_seconds(Device device);

namespace cuda {
std::string make_device_group_id();
std::unique_ptr<DeviceGroup> make_device_group(const std::string& id, int rank, int size,
                                               bool symmetric = false);
std::string no_symmetric_memory_reason();
std::vector<std::int64_t> symmetric_memory();
int device_group_version();
double exchange_seconds();
}  // namespace cuda

}  // namespace switchyard::ops
