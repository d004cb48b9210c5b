// Ranks as threads of one process, on the CPU: what a test of several ranks runs on.
#pragma once

#include <gtest/gtest.h>
#include <omp.h>

#include <exception>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "parallel/shared_memory.h"
#include "parallel/world.h"

namespace switchyard::test {

inline parallel::World world_of_thread(parallel::SharedMemory& memory, int rank) {
  parallel::World world;
  world.transport = parallel::make_shared_memory_transport(memory, rank);
  world.launcher = "threads";
  world.node_rank = rank;
  world.node_size = memory.ranks();
  world.cores = 1;
  return world;
}

// What each rank has thrown: a text that is empty for those that threw nothing, or were ended by another's.
// Calls f(world) on `size` threads, each with one OpenMP thread. ring_bytes 0: as many as for processes.
inline std::vector<std::string> errors_of_ranks(int size, const std::function<void(parallel::World&)>& f,
                                                std::size_t ring_bytes = 0) {
  parallel::SharedMemory memory(size,
                                ring_bytes > 0 ? ring_bytes : parallel::SharedMemory::ring_bytes_for(size));
  std::vector<std::string> error_R(static_cast<std::size_t>(size));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank)
    threads.emplace_back([&, rank] {
      omp_set_num_threads(1);
      parallel::World world = world_of_thread(memory, rank);
      try {
        f(world);
      } catch (const parallel::RunIsOver&) {
      } catch (const std::exception& error) {
        error_R[static_cast<std::size_t>(rank)] = error.what();
        memory.end_run();
      }
    });
  for (std::thread& thread : threads) thread.join();
  return error_R;
}

// The same; an exception of a rank ends the others and is a failure of the test.
inline void on_world_threads(int size, const std::function<void(parallel::World&)>& f,
                             std::size_t ring_bytes = 0) {
  const std::vector<std::string> error_R = errors_of_ranks(size, f, ring_bytes);
  for (int rank = 0; rank < size; ++rank)
    EXPECT_EQ(error_R[static_cast<std::size_t>(rank)], "") << "rank " << rank;
}

}  // namespace switchyard::test
