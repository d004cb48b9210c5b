#include "core/process_memory.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <string>
#include <string_view>

#include "core/control_group.h"
#include "core/system_file.h"

namespace switchyard {

namespace {

// "MemAvailable:  123456 kB" of a file of such lines; no value where it has none.
std::optional<std::int64_t> kib_line(const std::filesystem::path& path, std::string_view name) {
  std::ifstream file = open_system_file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(name)) continue;
    const std::size_t digit = line.find_first_of("0123456789");
    std::int64_t kib = 0;
    if (digit == std::string::npos) return std::nullopt;
    std::from_chars(line.data() + digit, line.data() + line.size(), kib);
    return kib * 1024;
  }
  return std::nullopt;
}

}  // namespace

std::int64_t peak_resident() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return std::int64_t{usage.ru_maxrss} * 1024;
}

bool reset_peak_resident() {
  std::ofstream file("/proc/self/clear_refs");
  file << "5" << std::flush;  // proc(5): the peak becomes what is resident now
  return file.good();
}

std::int64_t resident_memory() {
  std::ifstream file = open_system_file("/proc/self/statm");
  std::int64_t total = 0, resident = 0;
  file >> total >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

SystemMemory system_memory(const std::filesystem::path& root) {
  const std::filesystem::path file = root / "proc/meminfo";
  SystemMemory memory;
  memory.total = kib_line(file, "MemTotal:");
  memory.available = kib_line(file, "MemAvailable:");
  memory.swap = kib_line(file, "SwapTotal:").value_or(0);
  memory.swap_used = memory.swap - kib_line(file, "SwapFree:").value_or(memory.swap);
  return memory;
}

MemoryRoom memory_room(const std::filesystem::path& root) {
  MemoryRoom room;
  if (const auto free = system_memory(root).available) room.shared = *free;
  // A container may have less than its machine.
  if (const auto left = control_group(root).memory_left; left && *left < room.shared) {
    room.shared = *left;
    room.of_shared = "this machine's control group";
  }
  rlimit limit{};
  if (::getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
    const std::int64_t used = kib_line("/proc/self/status", "VmSize:").value_or(0);
    room.own = std::max<std::int64_t>(0, static_cast<std::int64_t>(limit.rlim_cur) - used);
  }
  return room;
}

std::optional<std::int64_t> available_memory(const std::filesystem::path& root) {
  const MemoryRoom room = memory_room(root);
  const std::int64_t least = std::min(room.shared, room.own);
  return least == INT64_MAX ? std::nullopt : std::optional(least);
}

}  // namespace switchyard
