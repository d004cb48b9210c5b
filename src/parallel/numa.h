// Which cores (core/cores.h) and devices of a machine are near each other.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "core/cores.h"

namespace switchyard::parallel {

struct NumaPlace {
  int node = -1;           // of memory; -1: the system does not say, as where there is only one
  std::vector<int> cores;  // of that node
};
// Of a device of that PCI address, "0000:18:00.0". `sys`: where the kernel describes the machine.
NumaPlace numa_place_of(const std::string& pci, const std::filesystem::path& sys = "/sys");

}  // namespace switchyard::parallel
