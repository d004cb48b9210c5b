// Which cores and devices of a machine are near each other.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard::parallel {

// "0-3,8" and {0, 1, 2, 3, 8}, as the kernel writes cores. A text that is none: no core.
std::vector<int> cores_of_list(std::string_view list);
std::string list_of_cores(const std::vector<int>& cores);  // ascending

// That this process may use; empty: the system does not say.
std::vector<int> usable_cores();

struct NumaPlace {
  int node = -1;           // of memory; -1: the system does not say, as where there is only one
  std::vector<int> cores;  // of that node
};
// Of a device of that PCI address, "0000:18:00.0". `sys`: where the kernel describes the machine.
NumaPlace numa_place_of(const std::string& pci, const std::filesystem::path& sys = "/sys");

}  // namespace switchyard::parallel
