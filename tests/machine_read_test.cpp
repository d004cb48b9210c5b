// Facts from trees of files like those of the kernel.
#include "machine/read.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "file_tree.h"
#include "machine/measure.h"

namespace switchyard::machine {
namespace {

namespace fs = std::filesystem;
constexpr std::int64_t kGiB = std::int64_t{1} << 30;

using Processor = test::FileTree;
using Machine = test::FileTree;

TEST_F(Processor, OfIntelBehindAHypervisor) {
  write("proc/cpuinfo",
        "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 207\n"
        "model name\t: Intel(R) Xeon(R) Processor\nflags\t\t: fpu avx2 avx512f hypervisor\nbogomips\t: 4600\n\n"
        "processor\t: 1\nmodel name\t: another\nflags\t\t: amx_tile\n");
  write("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n");
  write("sys/devices/system/cpu/cpu0/cpufreq/scaling_driver", "acpi-cpufreq\n");
  const ProcessorFacts facts = read_processor(root_);
  EXPECT_EQ(facts.name, "Intel(R) Xeon(R) Processor");
  EXPECT_EQ(facts.vendor, "GenuineIntel");
  EXPECT_EQ(facts.family, 6);
  EXPECT_EQ(facts.model, 0xcf);
  EXPECT_TRUE(facts.is_virtual);
  EXPECT_TRUE(facts.flags.contains("avx512f"));
  EXPECT_FALSE(facts.flags.contains("amx_tile"));
  EXPECT_EQ(facts.governor, "powersave");
  EXPECT_EQ(facts.frequency_driver, "acpi-cpufreq");
}

TEST_F(Processor, OfArmAndOfNothing) {
  EXPECT_EQ(read_processor(root_).name, "");
  write("proc/cpuinfo", "processor\t: 0\nFeatures\t: fp asimd sve bf16\nCPU implementer\t: 0x41\n");
  const ProcessorFacts facts = read_processor(root_);
  EXPECT_TRUE(facts.flags.contains("sve"));
  EXPECT_EQ(facts.vendor, "0x41");
}

TEST_F(Machine, CoresWithSiblingsOnTwoNodes) {
  write("sys/devices/system/cpu/online", "0-7\n");
  for (int core = 0; core < 8; ++core)
    write("sys/devices/system/cpu/cpu" + std::to_string(core) + "/topology/thread_siblings_list",
          std::to_string(core % 4) + "," + std::to_string(core % 4 + 4) + "\n");
  for (int node = 0; node < 2; ++node) {
    const std::string folder = "sys/devices/system/node/node" + std::to_string(node);
    write(folder + "/cpulist", node == 0 ? "0-1,4-5\n" : "2-3,6-7\n");
    write(folder + "/meminfo", "Node 0 MemTotal:       16777216 kB\nNode 0 MemFree:        1 kB\n");
  }
  const CoreFacts facts = read_cores(root_);
  EXPECT_EQ(facts.online.size(), 8u);
  EXPECT_EQ(facts.physical, (std::vector<std::vector<int>>{{0, 4}, {1, 5}, {2, 6}, {3, 7}}));
  ASSERT_EQ(facts.nodes.size(), 2u);
  EXPECT_EQ(facts.nodes[1].number, 1);
  EXPECT_EQ(facts.nodes[1].cores, (std::vector<int>{2, 3, 6, 7}));
  EXPECT_EQ(facts.nodes[1].memory, 16 * kGiB);
  EXPECT_FALSE(facts.quota);
  EXPECT_GE(facts.unbound, 1);
}

TEST_F(Machine, MemoryOfAContainer) {
  write("proc/self/cgroup", "0::/\n");
  write("sys/fs/cgroup/memory.max", std::to_string(2 * kGiB));
  write("sys/fs/cgroup/memory.current", std::to_string(kGiB / 2));
  write("proc/meminfo",
        "MemTotal: 67108864 kB\nMemAvailable: 33554432 kB\nSwapTotal: 2048 kB\nSwapFree: 1024 kB\n");
  write("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n");
  const MemoryFacts facts = read_memory(root_);
  EXPECT_EQ(facts.available, kGiB + kGiB / 2);
  EXPECT_EQ(facts.limit, 2 * kGiB);
  EXPECT_EQ(facts.swap, 2 << 20);
  EXPECT_EQ(facts.swap_used, 1 << 20);
  EXPECT_EQ(facts.large_pages, "never");
}

TEST_F(Machine, CardsAndTheirDriver) {
  write("sys/bus/pci/devices/0000:18:00.0/vendor", "0x10de\n");
  write("sys/bus/pci/devices/0000:18:00.0/class", "0x030200\n");
  write("sys/bus/pci/devices/0000:18:00.1/vendor", "0x10de\n");  // the card's sound
  write("sys/bus/pci/devices/0000:18:00.1/class", "0x040300\n");
  write("sys/bus/pci/devices/0000:19:00.0/vendor", "0x8086\n");
  write("sys/bus/pci/devices/0000:19:00.0/class", "0x030000\n");
  write("proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version: "
        "12\n");
  write("dev/nvidia0", "");
  write("dev/nvidia1", "");
  write("dev/nvidiactl", "");
  CudaFacts facts;
  read_devices(facts, root_);
  EXPECT_EQ(facts.cards, 1);
  EXPECT_EQ(facts.kernel_driver, "550.54.15");
  EXPECT_EQ(facts.nodes, 2);
  EXPECT_FALSE(facts.has_control_nodes);  // nvidia-uvm is missing
  EXPECT_FALSE(facts.has_infiniband);
  write("dev/nvidia-uvm", "");
  write("sys/class/infiniband/mlx5_0", "");
  read_devices(facts, root_);
  EXPECT_TRUE(facts.has_control_nodes);
  EXPECT_TRUE(facts.has_infiniband);
}

TEST_F(Machine, TimeThatOthersTake) {
  //                       user nice system idle iowait irq softirq steal
  write("proc/stat", "cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1 1\n");
  write("proc/self/stat", "4711 (a (b) c) R 1 2 3 4 5 6 7 8 9 10 50 50 0 0\n");
  write("proc/vmstat", "pswpin 10\npswpout 5\n");
  const Ticks before = read_ticks(root_);
  EXPECT_EQ(before.all, 1000);
  EXPECT_EQ(before.own, 100);
  write("proc/stat", "cpu  190 0 110 900 50 0 0 50 0 0\n");
  write("proc/self/stat", "4711 (a (b) c) R 1 2 3 4 5 6 7 8 9 10 90 60 0 0\n");
  write("proc/vmstat", "pswpin 10\npswpout 12\n");
  RateFacts rates;
  set_shares(rates, before, read_ticks(root_));
  // 300 ticks: 100 busy, of which 50 are this process's, and 50 stolen.
  EXPECT_DOUBLE_EQ(rates.stolen, 50.0 / 300);
  EXPECT_DOUBLE_EQ(rates.others, 50.0 / 300);
  EXPECT_EQ(rates.swapped_pages, 7);
}

TEST_F(Machine, ADiskIsTriedAndLeftAsItWas) {
  const DiskFacts facts = look_at_disk(root_ / "runs/that/are/not/there", true);
  EXPECT_EQ(facts.error, "");
  EXPECT_GT(facts.write, 0);
  EXPECT_GT(facts.read, 0);
  EXPECT_GT(facts.free, 0);
  EXPECT_TRUE(fs::is_empty(root_));
  write("file", "");
  EXPECT_EQ(look_at_disk(root_ / "file", true).error, "it is no directory");
  EXPECT_EQ(look_at_disk("/proc", false).error != "", true);  // nobody can write a file there
  EXPECT_EQ(look_at_disk(root_, false).write, 0);
}

TEST(Programs, AreAskedForSoLongAndNoLonger) {
  EXPECT_EQ(output_of({"sh", "-c", "echo out; echo err >&2"}, 5), "out\n");
  EXPECT_FALSE(output_of({"sh", "-c", "exit 3"}, 5));
  EXPECT_FALSE(output_of({"no-program-has-this-name"}, 5));
  EXPECT_FALSE(output_of({"sleep", "20"}, 0.2));
}

}  // namespace
}  // namespace switchyard::machine
