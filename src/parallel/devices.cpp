#include "parallel/devices.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <set>
#include <utility>

#include "core/error.h"
#include "core/json.h"
#include "core/log.h"
#include "ops/device_group.h"
#include "parallel/agreement.h"
#include "parallel/run_end.h"

namespace switchyard::parallel {

namespace {

using Ranks = std::span<const RankInventory>;

constexpr int kOldestNccl = 21800;         // ncclCommSplit
constexpr int kOldestSharingNccl = 23000;  // several ranks on one device
constexpr const char* kSwitches[] = {"SWITCHYARD_NO_GRAPH", "SWITCHYARD_NO_CUBLASLT", "SWITCHYARD_NO_WGMMA"};

std::string words_of_nccl(int version) {
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}
std::string words_of_driver(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

std::string name_of(Ranks rank_R, std::size_t rank) {
  return fmt::format("rank {} (host {})", rank, rank_R[rank].host);
}

std::string count_of(std::size_t n, const char* what) {
  return fmt::format("{} {}{}", n, what, n == 1 ? "" : "s");
}
// "; 3 more are like that", of a warning that stands for several.
std::string and_more(std::size_t n) { return n > 1 ? fmt::format("; {} more are like that", n - 1) : ""; }

int number_for(const RankInventory& rank) {
  const int seen = static_cast<int>(rank.seen.device.size());
  return seen > 1 ? rank.node_rank % seen : 0;
}

const ops::DeviceFacts& device_of(const RankInventory& rank) {
  return rank.seen.device[static_cast<std::size_t>(number_for(rank))];
}

// Why a rank has no device to compute on; empty: it has one.
std::string reason_against(const RankInventory& rank) {
  return rank.seen.device.empty() ? rank.seen.unusable : device_of(rank).unusable;
}

// Whether all ranks compute on devices, as far as it goes by what is requested and by what there is.
bool all_have_devices(Ranks rank_R, std::vector<std::string>& warnings) {
  const std::string& requested = rank_R[0].requested;
  for (std::size_t r = 1; r < rank_R.size(); ++r)
    if (rank_R[r].requested != requested)
      throw_input("--device: {} for rank 0 and {} for rank {}; give all ranks the same", requested,
                  rank_R[r].requested, r);
  if (requested == "cpu") return false;

  const auto has_none = [](const RankInventory& rank) { return !reason_against(rank).empty(); };
  const auto first = std::find_if(rank_R.begin(), rank_R.end(), has_none);
  if (first == rank_R.end()) return true;
  const std::string reason = reason_against(*first);
  const bool all_alike = std::all_of(rank_R.begin(), rank_R.end(),
                                     [&](const RankInventory& rank) { return reason_against(rank) == reason; });
  const std::string who =
      all_alike ? "" : name_of(rank_R, static_cast<std::size_t>(first - rank_R.begin())) + ": ";
  if (requested == "cuda") throw_input("--device cuda: {}{}; or use --device cpu", who, reason);
  if (std::any_of(rank_R.begin(), rank_R.end(), [&](const auto& rank) { return !has_none(rank); }))
    warnings.push_back(
        fmt::format("all ranks compute on the CPU, since not all have a device: {}{}", who, reason));
  return false;
}

void check_nccl(Ranks rank_R) {
  const int version = rank_R[0].nccl;
  for (std::size_t r = 0; r < rank_R.size(); ++r) {
    const int other = rank_R[r].nccl;
    if (other == 0)
      throw_input(
          "{} ranks: several ranks compute on the CPU alone in this build, which has no NCCL; use "
          "--device cpu, or one rank",
          rank_R.size());
    if (other < 0)
      throw_input(
          "{} finds no libnccl.so.2, by which ranks on devices meet; install it, name its folder in "
          "LD_LIBRARY_PATH, or use --device cpu",
          name_of(rank_R, r));
  }
  for (std::size_t r = 1; r < rank_R.size(); ++r)
    if (rank_R[r].nccl != version)
      throw_input("{} has NCCL {}, {} has {}; install one version everywhere", name_of(rank_R, 0),
                  words_of_nccl(version), name_of(rank_R, r), words_of_nccl(rank_R[r].nccl));
  if (version < kOldestNccl)
    throw_input("NCCL {} is too old for ranks on devices; install 2.18 or newer, or use --device cpu",
                words_of_nccl(version));
}

// A rank without a part of the backend computes other bits, or waits in exchanges that others have recorded.
void check_switches(Ranks rank_R) {
  for (const char* const variable : kSwitches) {
    const auto is_set = [&](const RankInventory& rank) {
      return std::find(rank.turned_off.begin(), rank.turned_off.end(), variable) != rank.turned_off.end();
    };
    const auto first_with = std::find_if(rank_R.begin(), rank_R.end(), is_set);
    const auto first_without = std::find_if_not(rank_R.begin(), rank_R.end(), is_set);
    if (first_with == rank_R.end() || first_without == rank_R.end()) continue;
    throw_input("{} is set for {} and not for {}; set it for all ranks, or for none", variable,
                name_of(rank_R, static_cast<std::size_t>(first_with - rank_R.begin())),
                name_of(rank_R, static_cast<std::size_t>(first_without - rank_R.begin())));
  }
}

bool may_share(Ranks rank_R) {
  return rank_R[0].nccl >= kOldestSharingNccl &&
         std::all_of(rank_R.begin(), rank_R.end(), [](const RankInventory& rank) { return rank.may_share; });
}

std::vector<std::string> seen_by(const RankInventory& rank) {
  std::vector<std::string> uuids;
  for (const ops::DeviceFacts& device : rank.seen.device) uuids.push_back(device.uuid);
  return uuids;
}

[[noreturn]] void refuse_sharing(const std::string& launcher, Ranks rank_R, std::size_t a, std::size_t b) {
  const RankInventory& rank = rank_R[a];
  const std::vector<std::string> seen = seen_by(rank);
  const std::size_t n_devices = std::set(seen.begin(), seen.end()).size();
  const auto n_ranks = static_cast<std::size_t>(rank.node_size);
  const bool all_see_these = std::all_of(rank_R.begin(), rank_R.end(), [&](const RankInventory& other) {
    return other.host != rank.host || seen_by(other) == seen;
  });
  if (rank.host == rank_R[b].host && all_see_these && n_devices < n_ranks)
    throw_input("{} {}: {} has {} for {}{}; start {}{}, or use --device cpu",
                launcher == "mpirun" ? "mpirun -n" : launcher, rank_R.size(), rank.host,
                count_of(n_devices, "CUDA device"), count_of(n_ranks, "rank"),
                rank.visible.empty() ? "" : fmt::format(" (CUDA_VISIBLE_DEVICES is {})", rank.visible),
                count_of(n_devices, "rank"), n_ranks < rank_R.size() ? " there" : "");
  const ops::DeviceFacts& device = device_of(rank);
  throw_input(
      "{} and {} would compute on the same device: GPU {} of {}, {}, {}; give each rank its own "
      "(CUDA_VISIBLE_DEVICES, srun --gpus-per-task=1), or use --device cpu",
      name_of(rank_R, a), name_of(rank_R, b), number_for(rank), rank.host, device.name, device.pci);
}

// Sets who shares a device with how many.
void look_for_shared_devices(const std::string& launcher, Ranks rank_R, DeviceChoice& choice) {
  std::size_t n_shared = 0;
  std::string first;
  for (std::size_t a = 0; a < rank_R.size(); ++a)
    for (std::size_t b = a + 1; b < rank_R.size(); ++b) {
      if (device_of(rank_R[a]).uuid != device_of(rank_R[b]).uuid) continue;
      if (!may_share(rank_R)) refuse_sharing(launcher, rank_R, a, b);
      ++choice.rank_R[a].sharing;
      ++choice.rank_R[b].sharing;
      if (n_shared++ == 0)
        first = fmt::format("{} and {} share GPU {}", name_of(rank_R, a), name_of(rank_R, b),
                            number_for(rank_R[a]));
    }
  if (n_shared > 0)
    choice.warnings.push_back(
        fmt::format("{} (NCCL_MULTI_RANK_GPU_ENABLE), which is experimental{}", first, and_more(n_shared)));
}

void warn_of_unlike_devices(Ranks rank_R, DeviceChoice& choice) {
  for (std::size_t r = 1; r < rank_R.size(); ++r) {
    const ops::DeviceFacts &one = device_of(rank_R[0]), &other = device_of(rank_R[r]);
    if (one.name == other.name && one.capability == other.capability) continue;
    choice.warnings.push_back(fmt::format("devices differ: {} has {}, {} {}; all wait for the slowest",
                                          name_of(rank_R, 0), one.name, name_of(rank_R, r), other.name));
    break;
  }
  for (std::size_t r = 1; r < rank_R.size(); ++r) {
    const int one = rank_R[0].seen.driver, other = rank_R[r].seen.driver;
    if (one == other) continue;
    choice.warnings.push_back(fmt::format("drivers differ: that of {} is for CUDA {}, of {} for {}",
                                          name_of(rank_R, 0), words_of_driver(one), name_of(rank_R, r),
                                          words_of_driver(other)));
    break;
  }
}

void look_for_devices_apart(Ranks rank_R, DeviceChoice& choice) {
  std::string first;
  for (std::size_t a = 0; a < rank_R.size(); ++a)
    for (const auto& [low, high] : rank_R[a].seen.apart) {
      if (low != number_for(rank_R[a])) continue;  // a pair is told by the rank of its lower number
      const std::string& uuid = rank_R[a].seen.device[static_cast<std::size_t>(high)].uuid;
      const auto b = std::find_if(rank_R.begin(), rank_R.end(),
                                  [&](const RankInventory& rank) { return device_of(rank).uuid == uuid; });
      if (b == rank_R.end()) continue;
      choice.apart.push_back({static_cast<int>(a), static_cast<int>(b - rank_R.begin())});
      if (first.empty())
        first = fmt::format("GPUs {} and {} of {}, of ranks {} and {},", low, high, rank_R[a].host, a,
                            b - rank_R.begin());
    }
  if (!choice.apart.empty())
    choice.warnings.push_back(fmt::format(
        "{} do not reach each other's memory: what they send goes through the host's, which is slower{}", first,
        and_more(choice.apart.size())));
}

void warn_of_far_cores(Ranks rank_R, DeviceChoice& choice) {
  std::size_t n_far = 0;
  std::string first;
  for (std::size_t r = 0; r < rank_R.size(); ++r) {
    const RankInventory& rank = rank_R[r];
    const auto number = static_cast<std::size_t>(number_for(rank));
    if (number >= rank.place.size() || rank.cores.empty() || rank.place[number].cores.empty()) continue;
    const std::vector<int>& near = rank.place[number].cores;
    const bool any_is_near = std::any_of(rank.cores.begin(), rank.cores.end(), [&](int core) {
      return std::find(near.begin(), near.end(), core) != near.end();
    });
    if (!any_is_near && n_far++ == 0)
      first = fmt::format("{} may use cores {}, none of NUMA node {} (cores {}), where its GPU {} is",
                          name_of(rank_R, r), list_of_cores(rank.cores), rank.place[number].node,
                          list_of_cores(near), number);
  }
  if (n_far > 0)
    choice.warnings.push_back(
        fmt::format("{}; bind ranks to the cores near their devices, by numactl or the launcher{}", first,
                    and_more(n_far)));
}

std::string line_of(Ranks rank_R, std::size_t r) {
  const RankInventory& rank = rank_R[r];
  const ops::DeviceFacts& device = device_of(rank);
  const auto number = static_cast<std::size_t>(number_for(rank));
  const bool one_machine = static_cast<std::size_t>(rank.node_size) == rank_R.size();
  std::string line =
      fmt::format("{}: GPU {}, {}, {}", one_machine ? fmt::format("rank {}", r) : name_of(rank_R, r), number,
                  device.name, device.pci);
  if (number < rank.place.size() && rank.place[number].node >= 0)
    line += fmt::format(", NUMA node {}", rank.place[number].node);
  if (!rank.cores.empty()) line += ", cores " + list_of_cores(rank.cores);
  return line;
}

RankInventory own_inventory(const std::string& requested, const World& world) {
  RankInventory own{
      .requested = requested, .host = host_name(), .node_rank = world.node_rank, .node_size = world.node_size};
  if (requested == "cpu") return own;
  own.seen = ops::device_inventory();
  if (own.seen.device.empty()) return own;
  if (const char* const visible = std::getenv("CUDA_VISIBLE_DEVICES")) own.visible = visible;
  own.nccl = ops::device_group_version();
  const char* const share = std::getenv("NCCL_MULTI_RANK_GPU_ENABLE");
  own.may_share = share != nullptr && std::string(share) == "1";
  for (const char* const variable : kSwitches) {
    const char* const value = std::getenv(variable);
    if (value != nullptr && std::string(value) != "0") own.turned_off.push_back(variable);
  }
  own.cores = usable_cores();
  for (const ops::DeviceFacts& device : own.seen.device) own.place.push_back(numa_place_of(device.pci));
  return own;
}

}  // namespace

DeviceChoice choose_devices(const std::string& launcher, Ranks rank_R) {
  DeviceChoice choice;
  if (!all_have_devices(rank_R, choice.warnings)) return choice;
  check_nccl(rank_R);
  check_switches(rank_R);
  choice.device = Device::cuda;
  for (const RankInventory& rank : rank_R) {
    choice.rank_R.push_back({.number = number_for(rank)});
    choice.host_R.push_back(rank.host);
  }
  look_for_shared_devices(launcher, rank_R, choice);
  warn_of_unlike_devices(rank_R, choice);
  look_for_devices_apart(rank_R, choice);
  warn_of_far_cores(rank_R, choice);
  for (std::size_t r = 0; r < rank_R.size(); ++r) choice.lines.push_back(line_of(rank_R, r));
  return choice;
}

std::string text_of(const RankInventory& rank) {
  Json devices(Json::Array{}), apart(Json::Array{}), places(Json::Array{});
  for (const ops::DeviceFacts& device : rank.seen.device)
    devices.push_back(Json::list(
        std::vector<std::string>{device.name, device.uuid, device.pci, device.capability, device.unusable}));
  for (const auto& [low, high] : rank.seen.apart) apart.push_back(Json::list(std::vector<int>{low, high}));
  for (const NumaPlace& place : rank.place)
    places.push_back(Json::Object{{"node", place.node}, {"cores", list_of_cores(place.cores)}});
  return to_line(Json::Object{{"requested", rank.requested},
                              {"host", rank.host},
                              {"node_rank", rank.node_rank},
                              {"node_size", rank.node_size},
                              {"visible", rank.visible},
                              {"unusable", rank.seen.unusable},
                              {"devices", std::move(devices)},
                              {"apart", std::move(apart)},
                              {"driver", rank.seen.driver},
                              {"nccl", rank.nccl},
                              {"may_share", rank.may_share},
                              {"turned_off", Json::list(rank.turned_off)},
                              {"cores", list_of_cores(rank.cores)},
                              {"places", std::move(places)}});
}

RankInventory inventory_of_text(const std::string& text) {
  const Json json = parse_stored_json(text, "what a rank says of its devices");
  const auto number = [](const Json& value) { return static_cast<int>(value.integer()); };
  RankInventory rank{.requested = json["requested"].text(),
                     .host = json["host"].text(),
                     .node_rank = number(json["node_rank"]),
                     .node_size = number(json["node_size"]),
                     .nccl = number(json["nccl"]),
                     .may_share = json["may_share"].boolean(),
                     .cores = cores_of_list(json["cores"].text())};
  rank.visible = json["visible"].text();
  for (const Json& variable : json["turned_off"].array()) rank.turned_off.push_back(variable.text());
  rank.seen.unusable = json["unusable"].text();
  rank.seen.driver = number(json["driver"]);
  for (const Json& device : json["devices"].array())
    rank.seen.device.push_back({.name = device[0].text(),
                                .uuid = device[1].text(),
                                .pci = device[2].text(),
                                .capability = device[3].text(),
                                .unusable = device[4].text()});
  for (const Json& pair : json["apart"].array()) rank.seen.apart.push_back({number(pair[0]), number(pair[1])});
  for (const Json& place : json["places"].array())
    rank.place.push_back({number(place["node"]), cores_of_list(place["cores"].text())});
  return rank;
}

DeviceChoice take_device(const std::string& requested, World& world) {
  if (world.size() == 1) {
    DeviceChoice alone;
    alone.device = ops::choose_device(requested);
    return alone;
  }
  const Group all = all_ranks(world);
  std::vector<RankInventory> rank_R;
  for (const std::string& text : gather(all, [&] { return text_of(own_inventory(requested, world)); }))
    rank_R.push_back(inventory_of_text(text));
  DeviceChoice choice = choose_devices(world.launcher, rank_R);
  if (choice.device == Device::cpu) return choice;
  world.device = choice.rank_R[static_cast<std::size_t>(world.rank())];
  together(all, [&] { ops::use_device(world.device.number); });
  check_while_waiting({});
  return choice;
}

void check_while_waiting(const std::vector<std::shared_ptr<ops::DeviceGroup>>& groups) {
  set_wait_check([groups] {
    for (const auto& group : groups) group->check();
  });
  ops::set_device_wait_check(look_while_waiting);
}

void log_devices(const DeviceChoice& choice, const World& world) {
  if (world.rank() != 0) return;
  for (const std::string& line : choice.lines) log_info(line);
  for (const std::string& warning : choice.warnings) log_warning(warning);
}

std::optional<std::int64_t> free_memory(const World& world, Device device) {
  const std::optional<std::int64_t> free = ops::free_memory(device);
  return free ? std::optional(*free / world.device.sharing) : free;
}

std::string describe_rank(const World& world, Device device) {
  return fmt::format("rank {} (host {}{})", world.rank(), host_name(),
                     device == Device::cpu ? "" : fmt::format(", GPU {}", world.device.number));
}

}  // namespace switchyard::parallel
