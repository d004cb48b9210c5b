// What the kernel's control groups allow this process: a container, a batch system or systemd may give less
// than the machine has. Both versions are read, also side by side as systemd mounts them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

namespace switchyard {

// The tightest limits of the group of this process and of all groups around it. No value: no limit.
struct ControlGroup {
  int version = 0;                           // of the groups that limit memory: 1 or 2; 0: none were found
  std::optional<double> cores;               // processor time a second of time: 1.5 is one core and a half
  std::optional<std::int64_t> memory_limit;  // bytes, of the group that has the least left
  std::optional<std::int64_t> memory_left;  // bytes that it may still take; what the page cache would give back
                                            // at once (inactive files) counts as free
};
// `root`: where /proc and /sys are; a test has its own.
ControlGroup control_group(const std::filesystem::path& root = "/");

// How many processes the system has killed for want of memory: in this process's groups, and anywhere.
std::int64_t killed_for_memory(const std::filesystem::path& root = "/");

}  // namespace switchyard
