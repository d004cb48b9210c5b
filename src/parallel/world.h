// All ranks of a run, and who holds what: the groups that a training run needs.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "parallel/group.h"

namespace switchyard::parallel {

// The CUDA device that a rank computes on.
struct RankDevice {
  int number = 0;   // among those that its process sees
  int sharing = 1;  // ranks that compute on it
};

// What launch.h makes of the way in which the program was started; one a process, and it outlives the run.
struct World {
  std::unique_ptr<Transport> transport;  // host memory
  std::string launcher;                  // "mpirun", "--nproc", or empty: a process alone
  int node_rank = 0, node_size = 1;      // this rank's place among those of its machine
  int cores = 0;                         // that this rank may use: its share, where ranks share them
  RankDevice device;                     // of a run on devices (devices.h)
  int rank() const { return transport->rank(); }
  int size() const { return transport->size(); }
  // What a rank uses if nothing else is said; 0: what the system gives (core/threads.h), as to a process alone.
  int threads() const { return size() > 1 ? cores : 0; }
};
World make_lone_world();
Group all_ranks(const World& world);
std::string host_name();  // of this machine

// `expert` ranks that follow one another hold the experts once: they are an expert group. Ranks of the same
// place in theirs hold the same experts: they are replicas.
struct Mesh {
  Group all, expert, replicas;
  // Who shares a region of the parameters (ParameterStore::regions): all ranks the replicated rows.
  const Group& sharing(std::size_t region) const { return region == 0 ? all : replicas; }
};
// expert divides the number of ranks. Ranks that compute on devices meet there, too: all ranks call, each with
// its device chosen (ops/device.h). `library_sums`: parallel.sums (group.h). `symmetric`:
// parallel.symmetric_memory (ops/device_group.h).
Mesh make_mesh(World& world, int expert, Device device = Device::cpu, bool library_sums = false,
               bool symmetric = false);
// All memory that devices exchange is known to all ranks of the mesh from here on: once, when all has been
// taken. Throws InputError on all ranks where it is not of the same sizes on them.
void register_memory(const Mesh& mesh);

// Of a process alone.
const Mesh& lone_mesh();

}  // namespace switchyard::parallel
