// The transport between ranks that mpirun, or another launcher that MPI knows, has started: on one machine or
// many. The build may be without MPI (CMake's SWITCHYARD_MPI); the functions are there all the same.
#pragma once

#include <cstddef>
#include <string>

#include "parallel/world.h"

namespace switchyard::parallel {

bool built_with_mpi();
// Of this build, "Open MPI v4.1.4"; empty: without MPI. Before MPI is started, too.
std::string mpi_library();

// What a launcher has put into this process' environment: how many copies of the program it started, and which
// of them this is. `variable`: which variable says so; null where none does, as for a process alone.
struct LaunchedCopies {
  int count = 1, number = 0;
  const char* variable = nullptr;
};
LaunchedCopies launched_copies();

// One MPI message holds at most an int of elements (and some libraries fail below that): longer ones are cut.
constexpr std::size_t kMpiPieceBytes = std::size_t{64} << 20;

// Starts MPI and makes the world of the copies. Once a process, from the thread that moves bytes. Throws
// InputError where the launched copies do not find each other, so that each would think that it is alone:
// the launcher belongs to another MPI, or the build has none; RunError where MPI fails.
World make_mpi_world(std::size_t piece_bytes = kMpiPieceBytes);

// Ends MPI. For a run that went well on all ranks alone: it waits for all of them, and so must not be called
// where one has failed; such a process just ends.
void finish_mpi();

}  // namespace switchyard::parallel
