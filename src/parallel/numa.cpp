#include "parallel/numa.h"

#include <fmt/format.h>

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

}  // namespace

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
