// Which rank computes on which CUDA device. Every rank says what it sees; all decide the same from what all
// have said.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "ops/device.h"
#include "ops/device_group.h"
#include "parallel/numa.h"
#include "parallel/world.h"

namespace switchyard::parallel {

// What a rank says of itself.
struct RankInventory {
  std::string requested = "auto";  // --device
  std::string host;
  int node_rank = 0, node_size = 1;
  ops::DeviceInventory seen = {};
  std::string visible = {};  // CUDA_VISIBLE_DEVICES
  int nccl = 0;              // ops::device_group_version()
  bool may_share = false;    // NCCL_MULTI_RANK_GPU_ENABLE=1
  // Variables by which this rank turns parts of the CUDA backend off (docs/cuda.md): "SWITCHYARD_NO_GRAPH".
  std::vector<std::string> turned_off = {};
  std::vector<int> cores = {};
  std::vector<NumaPlace> place = {};  // of each device that it sees
};

// As ranks tell each other, and back.
std::string text_of(const RankInventory& rank);
RankInventory inventory_of_text(const std::string& text);

struct DeviceChoice {
  Device device = Device::cpu;     // of all ranks: never some of each
  std::vector<RankDevice> rank_R;  // on the CPU empty
  // For the log, a line a rank: "rank 0: GPU 0, NVIDIA H100 80GB HBM3, 0000:18:00.0, NUMA node 0, cores 0-15".
  std::vector<std::string> lines;
  std::vector<std::string> warnings;
  std::vector<std::string> host_R;  // the machine of each rank
  std::vector<std::array<int, 2>>
      apart;  // pairs of ranks of a machine: neither device reaches the other's memory
};
// A rank takes the device of its place among the ranks of its machine, or the only one that it sees. Throws
// InputError where ranks would share a device, cannot meet on devices, or one has none and "cuda" is requested.
//   launcher: "--nproc", "mpirun"
DeviceChoice choose_devices(const std::string& launcher, std::span<const RankInventory> rank_R);

// All ranks call it, before anything else that touches a device: decides, and makes this process and `world`
// those of the rank's device. Whoever waits for that throws RunIsOver where the run is over because of another
// rank. A rank alone: ops::choose_device().
DeviceChoice take_device(const std::string& requested, World& world);
// From here on whoever waits, for the device or for other ranks, throws where the library by which ranks on
// devices meet has met an error in one of these groups, which it keeps.
void check_while_waiting(const std::vector<std::shared_ptr<ops::DeviceGroup>>& groups);
// From the first rank.
void log_devices(const DeviceChoice& choice, const World& world);

// What this rank may take of its device: an equal share, where several compute on it; no value on the CPU.
std::optional<std::int64_t> free_memory(const World& world, Device device);
// "rank 2 (host b, GPU 2)"; of a rank on the CPU "rank 2 (host b)".
std::string describe_rank(const World& world, Device device);

}  // namespace switchyard::parallel
