// Limits of control groups, and memory with them, from trees of files like those of the kernel.
#include "core/control_group.h"

#include <gtest/gtest.h>

#include <string>

#include "core/process_memory.h"
#include "file_tree.h"

namespace switchyard {
namespace {

constexpr std::int64_t kGiB = std::int64_t{1} << 30;

using ControlGroups = test::FileTree;

TEST_F(ControlGroups, OfVersion2GiveTheTightestOfAllAround) {
  write("proc/self/cgroup", "0::/batch/job\n");
  write("sys/fs/cgroup/cgroup.controllers", "cpu memory\n");
  write("sys/fs/cgroup/batch/cpu.max", "150000 100000\n");
  write("sys/fs/cgroup/batch/memory.max", std::to_string(8 * kGiB));
  write("sys/fs/cgroup/batch/memory.current", std::to_string(3 * kGiB));
  write("sys/fs/cgroup/batch/memory.stat", "anon 1\ninactive_file " + std::to_string(kGiB) + "\n");
  write("sys/fs/cgroup/batch/job/cpu.max", "max 100000\n");
  write("sys/fs/cgroup/batch/job/memory.max", "max\n");
  write("sys/fs/cgroup/batch/job/memory.events", "oom 3\noom_kill 2\n");
  write("proc/vmstat", "nr_free_pages 1\noom_kill 5\n");
  const ControlGroup group = control_group(root_);
  EXPECT_EQ(group.version, 2);
  EXPECT_EQ(group.cores, 1.5);
  EXPECT_EQ(group.memory_limit, 8 * kGiB);
  EXPECT_EQ(group.memory_left, 6 * kGiB);  // of the 3 used, one is cache
  EXPECT_EQ(killed_for_memory(root_), 7);
}

TEST_F(ControlGroups, OfAContainerWhosePathIsTheMachines) {
  write("proc/self/cgroup", "0::/docker/0123456789abcdef\n");
  write("sys/fs/cgroup/cgroup.controllers", "cpu memory\n");
  write("sys/fs/cgroup/cpu.max", "400000 100000\n");
  write("sys/fs/cgroup/memory.max", std::to_string(2 * kGiB));
  write("sys/fs/cgroup/memory.current", std::to_string(kGiB / 2));
  write("proc/meminfo",
        "MemTotal: 67108864 kB\nMemAvailable: 33554432 kB\nSwapTotal: 2048 kB\nSwapFree: 1024 kB\n");
  EXPECT_EQ(control_group(root_).cores, 4);
  EXPECT_EQ(available_memory(root_), kGiB + kGiB / 2);
  EXPECT_EQ(system_memory(root_).total, 64 * kGiB);
  EXPECT_EQ(system_memory(root_).swap, 2 << 20);
  EXPECT_EQ(system_memory(root_).swap_used, 1 << 20);
}

TEST_F(ControlGroups, OfVersion1BesideVersion2) {
  write("proc/self/cgroup", "4:memory:/job\n2:cpu,cpuacct:/job\n0::/\n");
  write("sys/fs/cgroup/unified/cgroup.controllers", "");
  write("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "50000\n");
  write("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000\n");
  write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(control_group(root_).cores, 0.5);
  EXPECT_FALSE(control_group(root_).memory_limit);
  write("sys/fs/cgroup/memory/job/memory.limit_in_bytes", std::to_string(4 * kGiB));
  write("sys/fs/cgroup/memory/job/memory.usage_in_bytes", std::to_string(kGiB));
  write("sys/fs/cgroup/memory/job/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n");
  EXPECT_EQ(control_group(root_).version, 1);
  EXPECT_EQ(control_group(root_).memory_left, 3 * kGiB);
  EXPECT_EQ(killed_for_memory(root_), 1);
}

TEST_F(ControlGroups, OfNoneThereIsNoLimit) {
  const ControlGroup group = control_group(root_);
  EXPECT_EQ(group.version, 0);
  EXPECT_FALSE(group.cores || group.memory_limit || group.memory_left);
  EXPECT_FALSE(available_memory(root_));
}

}  // namespace
}  // namespace switchyard
