// Who hears what kernels do, so as to judge it: checks.cpp where it is linked, nobody elsewhere. Everything is
// told as the thread that runs, but the course of a launch. `place`: an address in the kernel's code.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace simt {

class Watcher {
 public:
  virtual ~Watcher() = default;

  // The course of a launch.
  virtual void begin_launch() = 0;
  virtual void begin_block(unsigned n_threads) = 0;
  virtual void shared_piece(const void* data, std::size_t bytes) = 0;  // of the block
  virtual std::string end_launch() = 0;  // all that was found, a line each; in case of an error too

  // Memory. What hooks in the kernels' code do not see.
  virtual void read(const void* from, std::size_t bytes, const void* place) = 0;
  virtual void write(const void* to, std::size_t bytes, const void* place) = 0;
  virtual void atomic(const void* at, std::size_t bytes, const void* place) = 0;
  virtual void written_by_host(const void* to, std::size_t bytes) = 0;
  virtual void emptied(const void* data, std::size_t bytes) = 0;  // nothing is written there; or it is released

  // Who waits for whom.
  virtual void block_meets() = 0;
  virtual void warp_meets(unsigned mask) = 0;
  virtual void arrive(const void* barrier) = 0;
  virtual void pass(const void* barrier) = 0;                             // all have arrived that it waits for
  virtual void wait(const void* barrier) = 0;                             // until it has passed
  virtual void meet_elsewhere(const void* place, const void* other) = 0;  // two threads in one barrier

  // Copies: of this thread to shared memory, in groups, and bulk copies, which arrive at a barrier.
  virtual void copy(void* to, const void* from, unsigned bytes, unsigned zeros, const void* place) = 0;
  virtual void commit_copies() = 0;
  virtual void wait_for_copies(unsigned groups_left) = 0;
  virtual void bulk_read(const void* barrier, const void* from, std::size_t bytes, const void* place) = 0;
  virtual void bulk_write(const void* barrier, void* to, std::size_t bytes, const void* place) = 0;

  // Bulk copies from shared memory, in groups of this thread.
  virtual void store_read(const void* from, std::size_t bytes, const void* place) = 0;
  virtual void store_write(void* to, std::size_t bytes, const void* place) = 0;  // or adds
  virtual void commit_stores() = 0;
  virtual void wait_for_stores(unsigned groups_left, bool read_only) = 0;

  // Products, of the warp; each is a part of its threads' open group.
  virtual void begin_product() = 0;
  virtual void product_read(const void* from, std::size_t bytes, const void* place) = 0;
  virtual void commit_products() = 0;
  virtual void wait_for_products(unsigned groups_left) = 0;
  virtual void fence_proxy_async() = 0;
};

inline Watcher* watcher = nullptr;

}  // namespace simt
