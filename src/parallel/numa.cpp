#include "parallel/numa.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <fstream>

namespace switchyard::parallel {

namespace {

// The first line; empty: there is no such file.
std::string line_of(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

bool read_number(std::string_view& text, int& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc()) return false;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return true;
}

bool skip(std::string_view& text, char c) {
  if (!text.starts_with(c)) return false;
  text.remove_prefix(1);
  return true;
}

}  // namespace

std::vector<int> cores_of_list(std::string_view list) {
  constexpr int kMostCores = 1 << 16;
  std::vector<int> cores;
  do {
    int first = 0;
    if (!read_number(list, first)) return {};
    int last = first;
    if (skip(list, '-') && !read_number(list, last)) return {};
    if (first < 0 || last < first || last >= kMostCores) return {};
    for (int core = first; core <= last; ++core) cores.push_back(core);
  } while (skip(list, ','));
  return list.empty() ? cores : std::vector<int>();
}

std::string list_of_cores(const std::vector<int>& cores) {
  std::string list;
  for (std::size_t first = 0; first < cores.size();) {
    std::size_t last = first;
    while (last + 1 < cores.size() && cores[last + 1] == cores[last] + 1) ++last;
    list += fmt::format("{}{}", list.empty() ? "" : ",", cores[first]);
    if (last > first) list += fmt::format("-{}", cores[last]);
    first = last + 1;
  }
  return list;
}

std::vector<int> usable_cores() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  std::vector<int> cores;
  if (::sched_getaffinity(0, sizeof(mask), &mask) != 0) return cores;
  for (int core = 0; core < CPU_SETSIZE; ++core)
    if (CPU_ISSET(core, &mask)) cores.push_back(core);
  return cores;
}

NumaPlace numa_place_of(const std::string& pci, const std::filesystem::path& sys) {
  // The kernel writes addresses in small letters.
  std::string address = pci;
  std::transform(address.begin(), address.end(), address.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  const std::string line = line_of(sys / "bus/pci/devices" / address / "numa_node");
  std::string_view text = line;
  NumaPlace place;
  if (!read_number(text, place.node) || !text.empty() || place.node < 0) return {};
  place.cores = cores_of_list(line_of(sys / fmt::format("devices/system/node/node{}/cpulist", place.node)));
  return place;
}

}  // namespace switchyard::parallel
