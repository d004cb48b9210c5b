// Which rank computes on which device, decided from inventories that are made up; and what is said of it.
#include "parallel/devices.h"

#include <gtest/gtest.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "core/error.h"
#include "temp_dir.h"

namespace switchyard::parallel {
namespace {

using namespace test;

ops::DeviceFacts h100(int number, const std::string& host = "a") {
  return {.name = "NVIDIA H100 80GB HBM3",
          .uuid = "GPU-" + host + std::to_string(number),
          .pci = "0000:1" + std::to_string(number) + ":00.0",
          .capability = "9.0",
          .unusable = ""};
}

// A machine of so many devices, all seen by each of its ranks.
std::vector<RankInventory> machine(int devices, int ranks, const std::string& host = "a") {
  std::vector<RankInventory> rank_R;
  for (int r = 0; r < ranks; ++r) {
    RankInventory rank;
    rank.requested = "cuda";
    rank.host = host;
    rank.node_rank = r;
    rank.node_size = ranks;
    rank.seen.driver = 12080;
    for (int d = 0; d < devices; ++d) rank.seen.device.push_back(h100(d, host));
    if (devices == 0) rank.seen.unusable = "there is no CUDA device on this machine";
    rank.nccl = 22809;
    rank_R.push_back(rank);
  }
  return rank_R;
}

std::vector<RankInventory> operator+(std::vector<RankInventory> one, const std::vector<RankInventory>& other) {
  one.insert(one.end(), other.begin(), other.end());
  return one;
}

std::vector<int> numbers(const DeviceChoice& choice) {
  std::vector<int> number_R;
  for (const RankDevice& device : choice.rank_R) number_R.push_back(device.number);
  return number_R;
}

TEST(ChooseDevices, TakesTheDeviceOfItsPlaceOnItsMachine) {
  const DeviceChoice choice = choose_devices("mpirun", machine(4, 3, "a") + machine(2, 2, "b"));
  EXPECT_EQ(choice.device, Device::cuda);
  EXPECT_EQ(numbers(choice), (std::vector<int>{0, 1, 2, 0, 1}));
  for (const RankDevice& device : choice.rank_R) EXPECT_EQ(device.sharing, 1);
  EXPECT_EQ(choice.warnings, std::vector<std::string>());
  EXPECT_EQ(choice.lines[4], "rank 4 (host b): GPU 1, NVIDIA H100 80GB HBM3, 0000:11:00.0");
}

TEST(ChooseDevices, RanksThatMpirunDealsOutInTurnTakeTheirs) {
  const auto a = machine(2, 2, "a"), b = machine(2, 2, "b");
  const std::vector<RankInventory> in_turn = {a[0], b[0], a[1], b[1]};
  EXPECT_EQ(numbers(choose_devices("mpirun", in_turn)), (std::vector<int>{0, 0, 1, 1}));
}

TEST(ChooseDevices, ARankThatSeesOneDeviceTakesThat) {
  auto rank_R = machine(1, 4);
  for (int r = 0; r < 4; ++r) rank_R[static_cast<std::size_t>(r)].seen.device = {h100(r)};
  EXPECT_EQ(numbers(choose_devices("mpirun", rank_R)), (std::vector<int>{0, 0, 0, 0}));
}

TEST(ChooseDevices, AutoIsAllOnDevicesOrAllOnTheCpu) {
  auto rank_R = machine(2, 2, "a") + machine(0, 1, "b");
  for (RankInventory& rank : rank_R) rank.requested = "auto";
  const DeviceChoice mixed = choose_devices("mpirun", rank_R);
  EXPECT_EQ(mixed.device, Device::cpu);
  EXPECT_EQ(mixed.rank_R.size(), 0u);
  EXPECT_EQ(mixed.warnings,
            (std::vector<std::string>{
                "all ranks compute on the CPU, since not all have a device: rank 2 (host b): there "
                "is no CUDA device on this machine"}));
  rank_R.pop_back();
  EXPECT_EQ(choose_devices("mpirun", rank_R).device, Device::cuda);

  auto none = machine(0, 2);
  for (RankInventory& rank : none) rank.requested = "auto";
  const DeviceChoice cpu = choose_devices("--nproc", none);
  EXPECT_EQ(cpu.device, Device::cpu);
  EXPECT_EQ(cpu.warnings, std::vector<std::string>()) << "a machine without devices is nothing to warn of";
}

TEST(ChooseDevices, TheCpuIsForAllAndAsksForNothing) {
  auto rank_R = machine(2, 4);
  for (RankInventory& rank : rank_R) {
    rank.requested = "cpu";
    rank.nccl = 0;
  }
  EXPECT_EQ(choose_devices("--nproc", rank_R).device, Device::cpu);
}

struct Refusal {
  const char* what;
  std::function<std::vector<RankInventory>()> ranks;
  const char* message;
  const char* launcher = "mpirun";
};

template <class F>
std::function<std::vector<RankInventory>()> changed(std::vector<RankInventory> rank_R, F change) {
  return [=]() mutable {
    change(rank_R);
    return rank_R;
  };
}
const auto as_it_is = [](std::vector<RankInventory>&) {};

const Refusal kRefusals[] = {
    {"FewerDevicesThanRanks", changed(machine(2, 4), as_it_is),
     "--nproc 4: a has 2 CUDA devices for 4 ranks; start 2 ranks, or use --device cpu", "--nproc"},
    {"FewerOnOneOfTwoMachines", changed(machine(2, 2, "a") + machine(1, 2, "b"), as_it_is),
     "mpirun -n 4: b has 1 CUDA device for 2 ranks; start 1 rank there, or use --device cpu"},
    {"FewerAreShown", changed(machine(2, 3), [](auto& rank_R) { rank_R[0].visible = "4,5"; }),
     "mpirun -n 3: a has 2 CUDA devices for 3 ranks (CUDA_VISIBLE_DEVICES is 4,5); start 2 ranks, or use "
     "--device cpu"},
    {"TwoRanksOnOneDevice",
     changed(machine(1, 4), [](auto& rank_R) { rank_R[3].seen.device = rank_R[2].seen.device = {h100(1)}; }),
     "rank 0 (host a) and rank 1 (host a) would compute on the same device: GPU 0 of a, NVIDIA H100 80GB HBM3, "
     "0000:10:00.0; give each rank its own (CUDA_VISIBLE_DEVICES, srun --gpus-per-task=1), or use --device "
     "cpu"},
    {"ContainersThatSeeOneDevice",
     changed(machine(1, 1, "a") + machine(1, 1, "b"),
             [](auto& rank_R) { rank_R[1].seen.device = rank_R[0].seen.device; }),
     "rank 0 (host a) and rank 1 (host b) would compute on the same device: GPU 0 of a, NVIDIA H100 80GB HBM3, "
     "0000:10:00.0; give each rank its own (CUDA_VISIBLE_DEVICES, srun --gpus-per-task=1), or use --device "
     "cpu"},
    {"SharingWithAnOldNccl",
     changed(machine(1, 2),
             [](auto& rank_R) {
               for (auto& rank : rank_R) rank.may_share = true;
             }),
     "mpirun -n 2: a has 1 CUDA device for 2 ranks; start 1 rank, or use --device cpu"},
    {"SharingThatOneRankDoesNotAskFor",
     changed(machine(1, 2),
             [](auto& rank_R) {
               for (auto& rank : rank_R) rank.nccl = 23000;
               rank_R[0].may_share = true;
             }),
     "mpirun -n 2: a has 1 CUDA device for 2 ranks; start 1 rank, or use --device cpu"},
    {"NoDeviceOnOneMachine", changed(machine(2, 2, "a") + machine(0, 1, "b"), as_it_is),
     "--device cuda: rank 2 (host b): there is no CUDA device on this machine; or use --device cpu"},
    {"NoDeviceAnywhere", changed(machine(0, 2), as_it_is),
     "--device cuda: there is no CUDA device on this machine; or use --device cpu"},
    {"AnOldDevice",
     changed(machine(2, 2), [](auto& rank_R) { rank_R[1].seen.device[1].unusable = "it is too old"; }),
     "--device cuda: rank 1 (host a): it is too old; or use --device cpu"},
    {"NoNccl",
     changed(machine(2, 2),
             [](auto& rank_R) {
               for (auto& rank : rank_R) rank.nccl = 0;
             }),
     "2 ranks: several ranks compute on the CPU alone in this build, which has no NCCL; use "
     "--device cpu, or one rank"},
    {"NcclNotFound", changed(machine(2, 2), [](auto& rank_R) { rank_R[1].nccl = -1; }),
     "rank 1 (host a) finds no libnccl.so.2, by which ranks on devices meet; install it, name its folder in "
     "LD_LIBRARY_PATH, or use --device cpu"},
    {"OldNccl",
     changed(machine(2, 2),
             [](auto& rank_R) {
               for (auto& rank : rank_R) rank.nccl = 21705;
             }),
     "NCCL 2.17.5 is too old for ranks on devices; install 2.18 or newer, or use --device cpu"},
    {"TwoNccls", changed(machine(1, 1, "a") + machine(1, 1, "b"), [](auto& rank_R) { rank_R[1].nccl = 22203; }),
     "rank 0 (host a) has NCCL 2.28.9, rank 1 (host b) has 2.22.3; install one version everywhere"},
    {"OneRankWithoutRecordings",
     changed(machine(2, 2),
             [](auto& rank_R) {
               rank_R[0].turned_off = {"SWITCHYARD_NO_WGMMA"};
               rank_R[1].turned_off = {"SWITCHYARD_NO_GRAPH", "SWITCHYARD_NO_WGMMA"};
             }),
     "SWITCHYARD_NO_GRAPH is set for rank 1 (host a) and not for rank 0 (host a); set it for all ranks, or for "
     "none"},
    {"TwoWishes", changed(machine(2, 2), [](auto& rank_R) { rank_R[1].requested = "cpu"; }),
     "--device: cuda for rank 0 and cpu for rank 1; give all ranks the same"},
};

TEST(ChooseDevices, RefusesInOneLine) {
  for (const Refusal& refusal : kRefusals) {
    const std::vector<RankInventory> rank_R = refusal.ranks();
    const std::string message = message_of<InputError>([&] { choose_devices(refusal.launcher, rank_R); });
    EXPECT_EQ(message, refusal.message) << refusal.what;
  }
}

TEST(ChooseDevices, RanksMayShareADeviceWhereNcclDoesAndAllAskForIt) {
  auto rank_R = machine(2, 5);
  for (RankInventory& rank : rank_R) {
    rank.nccl = 23000;
    rank.may_share = true;
  }
  const DeviceChoice choice = choose_devices("--nproc", rank_R);
  EXPECT_EQ(numbers(choice), (std::vector<int>{0, 1, 0, 1, 0}));
  const std::vector<int> sharing = {3, 2, 3, 2, 3};
  for (std::size_t r = 0; r < 5; ++r) EXPECT_EQ(choice.rank_R[r].sharing, sharing[r]) << r;
  EXPECT_EQ(choice.warnings, (std::vector<std::string>{"rank 0 (host a) and rank 2 (host a) share GPU 0 "
                                                       "(NCCL_MULTI_RANK_GPU_ENABLE), which is experimental; 3 "
                                                       "more are like that"}));
}

TEST(ChooseDevices, WarnsOfDevicesThatDoNotReachEachOther) {
  auto rank_R = machine(4, 3);
  for (RankInventory& rank : rank_R) rank.seen.apart = {{0, 1}, {1, 2}, {0, 3}};  // nobody computes on 3
  const DeviceChoice choice = choose_devices("--nproc", rank_R);
  EXPECT_EQ(choice.apart, (std::vector<std::array<int, 2>>{{0, 1}, {1, 2}}));
  EXPECT_EQ(choice.warnings,
            (std::vector<std::string>{
                "GPUs 0 and 1 of a, of ranks 0 and 1, do not reach each other's memory: what they send goes "
                "through the host's, which is slower; 1 more are like that"}));
}

TEST(ChooseDevices, WarnsOfUnlikeDevicesAndDrivers) {
  auto rank_R = machine(1, 1, "a") + machine(1, 1, "b");
  rank_R[1].seen.device[0].name = "NVIDIA A100";
  rank_R[1].seen.driver = 12040;
  EXPECT_EQ(
      choose_devices("mpirun", rank_R).warnings,
      (std::vector<std::string>{"devices differ: rank 0 (host a) has NVIDIA H100 80GB HBM3, rank 1 (host b) "
                                "NVIDIA A100; all wait for the slowest",
                                "drivers differ: that of rank 0 (host a) is for CUDA 12.8, of rank 1 (host b) "
                                "for 12.4"}));
}

TEST(ChooseDevices, SaysWhereADeviceIsAndWarnsOfCoresThatAreElsewhere) {
  auto rank_R = machine(2, 2);
  for (RankInventory& rank : rank_R) rank.place = {{0, {0, 1, 2, 3}}, {1, {4, 5, 6, 7}}};
  rank_R[0].cores = {2, 3, 4};
  rank_R[1].cores = {4, 5, 7};
  DeviceChoice choice = choose_devices("--nproc", rank_R);
  EXPECT_EQ(choice.lines, (std::vector<std::string>{
                              "rank 0: GPU 0, NVIDIA H100 80GB HBM3, 0000:10:00.0, NUMA node 0, cores 2-4",
                              "rank 1: GPU 1, NVIDIA H100 80GB HBM3, 0000:11:00.0, NUMA node 1, cores 4-5,7"}));
  EXPECT_EQ(choice.warnings, std::vector<std::string>()) << "some cores of each are near";

  rank_R[1].cores = {0, 1};
  EXPECT_EQ(
      choose_devices("--nproc", rank_R).warnings,
      (std::vector<std::string>{"rank 1 (host a) may use cores 0-1, none of NUMA node 1 (cores 4-7), where "
                                "its GPU 1 is; bind ranks to the cores near their devices, by numactl or "
                                "the launcher"}));
  rank_R[1].place = {};  // a system that does not say
  choice = choose_devices("--nproc", rank_R);
  EXPECT_EQ(choice.warnings, std::vector<std::string>());
  EXPECT_EQ(choice.lines[1], "rank 1: GPU 1, NVIDIA H100 80GB HBM3, 0000:11:00.0, cores 0-1");
}

TEST(RankInventory, ArrivesAsItWasSaid) {
  RankInventory rank = machine(2, 2)[1];
  rank.seen.apart = {{0, 1}};
  rank.seen.device[1].unusable = "it \"is\" too old";
  rank.may_share = true;
  rank.turned_off = {"SWITCHYARD_NO_GRAPH", "SWITCHYARD_NO_WGMMA"};
  rank.visible = "2,3";
  rank.cores = {0, 1, 5};
  rank.place = {{-1, {}}, {1, {4, 5}}};
  const RankInventory there = inventory_of_text(text_of(rank));
  EXPECT_EQ(text_of(there), text_of(rank));
  EXPECT_EQ(there.requested, "cuda");
  EXPECT_EQ(there.host, "a");
  EXPECT_EQ(there.node_rank, 1);
  EXPECT_EQ(there.node_size, 2);
  EXPECT_EQ(there.seen.device[1].unusable, "it \"is\" too old");
  EXPECT_EQ(there.seen.device[1].uuid, rank.seen.device[1].uuid);
  EXPECT_EQ(there.seen.apart, rank.seen.apart);
  EXPECT_EQ(there.seen.driver, 12080);
  EXPECT_EQ(there.nccl, 22809);
  EXPECT_TRUE(there.may_share);
  EXPECT_EQ(there.visible, "2,3");
  EXPECT_EQ(there.cores, rank.cores);
  EXPECT_EQ(there.place[0].node, -1);
  EXPECT_EQ(there.place[1].cores, rank.place[1].cores);
}

TEST(Numa, IsLookedUpByTheDevicesAddress) {
  const TempDir sys;
  const auto write = [&](const std::filesystem::path& path, const char* text) {
    std::filesystem::create_directories((sys.path() / path).parent_path());
    std::ofstream(sys.path() / path) << text;
  };
  write("bus/pci/devices/0000:1b:00.0/numa_node", "1\n");
  write("devices/system/node/node1/cpulist", "16-31,48-63\n");
  const NumaPlace place = numa_place_of("0000:1B:00.0", sys.path());
  EXPECT_EQ(place.node, 1);
  EXPECT_EQ(list_of_cores(place.cores), "16-31,48-63");

  EXPECT_EQ(numa_place_of("0000:1c:00.0", sys.path()).node, -1) << "no such device";
  write("bus/pci/devices/0000:1d:00.0/numa_node", "-1\n");
  EXPECT_EQ(numa_place_of("0000:1d:00.0", sys.path()).node, -1) << "one node, or a system that does not say";
  write("bus/pci/devices/0000:1e:00.0/numa_node", "0\n");
  EXPECT_EQ(numa_place_of("0000:1e:00.0", sys.path()).cores, std::vector<int>())
      << "no list of that node's cores";
}

}  // namespace
}  // namespace switchyard::parallel
