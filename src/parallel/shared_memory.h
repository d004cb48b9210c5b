// The transport between ranks of one machine: processes that share a mapping of memory, or threads of one
// process. For each ordered pair of ranks the memory holds a ring of bytes, which the sender fills and the
// receiver empties, each by its own core's copying; nobody needs a package, a daemon or a right for it.
#pragma once

#include <cstddef>
#include <memory>

#include "parallel/transport.h"

namespace switchyard::parallel {

// The memory. An anonymous file: children inherit the mapping by fork, or its descriptor by exec, and nothing
// is left when the last process ends. Pages that no message has touched take no room.
class SharedMemory {
 public:
  // 1 MiB, less with more than 9 ranks: what a rank sends through is at most 8 MiB.
  static std::size_t ring_bytes_for(int ranks);

  // For so many ranks; ring_bytes is a multiple of 64, at least 128. Throws RunError where the system has no
  // room for it.
  SharedMemory(int ranks, std::size_t ring_bytes);
  explicit SharedMemory(int ranks) : SharedMemory(ranks, ring_bytes_for(ranks)) {}
  // What another process has made, by a descriptor that was inherited.
  static SharedMemory open(int descriptor);
  ~SharedMemory();
  SharedMemory(SharedMemory&& other) noexcept;
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  int ranks() const;
  // Closed at exec: who hands it to another program clears FD_CLOEXEC there.
  int descriptor() const { return descriptor_; }

  // Every rank that moves bytes, or comes to do so, throws RunIsOver within 100 ms. From any process or thread.
  void end_run();
  bool run_ended() const;

 private:
  friend class SharedMemoryTransport;
  SharedMemory() = default;
  struct Header;
  struct Bell;
  struct Ring;
  Header& header() const { return *reinterpret_cast<Header*>(base_); }
  Bell& bell(int rank) const;
  Ring& ring(int from, int to) const;
  std::byte* ring_data(int from, int to) const;
  void map(std::size_t bytes);

  int descriptor_ = -1;
  std::byte* base_ = nullptr;
  std::size_t bytes_ = 0;
};

// One of each rank, over memory that outlives it.
std::unique_ptr<Transport> make_shared_memory_transport(SharedMemory& memory, int rank);

}  // namespace switchyard::parallel
