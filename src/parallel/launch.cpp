#include "parallel/launch.h"

#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <memory>
#include <vector>

#include "core/error.h"
#include "core/log.h"
#include "parallel/mpi.h"
#include "parallel/shared_memory.h"

namespace switchyard::parallel {

namespace {

constexpr int kExitRun = 1, kExitInput = 2;

// A rank's share of the cores that its machine's ranks may use.
int share_of_cores(int node_size) {
  cpu_set_t set;
  CPU_ZERO(&set);
  const int cores = ::sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
  return std::max(1, cores / node_size);
}

int guarded(const std::function<int(World&)>& body, World& world) {
  try {
    return body(world);
  } catch (const RunIsOver&) {
    return kExitRun;
  } catch (const InputError& error) {
    log_error(error.what());
    return kExitInput;
  } catch (const std::exception& error) {
    log_error(error.what());
    return kExitRun;
  }
}

int run_child(SharedMemory& memory, int rank, int nproc, const std::function<int(World&)>& body) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  World world;
  world.transport = make_shared_memory_transport(memory, rank);
  world.launcher = "--nproc";
  world.node_rank = rank;
  world.node_size = nproc;
  world.cores = share_of_cores(nproc);
  return guarded(body, world);
}

int run_copies(int nproc, const std::function<int(World&)>& body) {
  SharedMemory memory(nproc);
  std::vector<pid_t> children;
  for (int rank = 0; rank < nproc; ++rank) {
    const pid_t child = ::fork();
    if (child < 0) throw_run("rank {} cannot be started: {}", rank, std::strerror(errno));
    if (child == 0) std::exit(run_child(memory, rank, nproc, body));
    children.push_back(child);
  }
  int code = 0;
  for (std::size_t left = children.size(); left > 0; --left) {
    int status = 0;
    if (::wait(&status) < 0) break;
    const int ended = WIFEXITED(status) ? WEXITSTATUS(status) : kExitRun;
    if (ended == 0) continue;
    if (code == 0) code = ended;
    memory.end_run();
  }
  return code;
}

}  // namespace

int run_ranks(int nproc, const std::function<int(World&)>& body) {
  const LaunchedCopies launched = launched_copies();
  if (nproc > 0 && launched.count > 1)
    throw_input("--nproc {}: {} says that {} copies were started already; use one of the two", nproc,
                launched.variable, launched.count);
  if (nproc > 1) return run_copies(nproc, body);
  // One copy needs no MPI, whoever has started it.
  if (launched.count == 1 || nproc == 1) {
    World world = make_lone_world();
    return body(world);
  }
  World world = make_mpi_world();
  const int code = guarded(body, world);
  if (code == 0) finish_mpi();
  return code;
}

}  // namespace switchyard::parallel
