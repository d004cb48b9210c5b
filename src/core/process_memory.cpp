#include "core/process_memory.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <string>
#include <string_view>

namespace switchyard {

namespace {

// "MemAvailable:  123456 kB" of a file of such lines; no value where it has none.
std::optional<std::int64_t> kib_line(const char* path, std::string_view name) {
  std::ifstream file(path);
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

// A file that holds one number; no value where there is none, as "max".
std::optional<std::int64_t> number_in(const char* path) {
  std::ifstream file(path);
  std::int64_t value = 0;
  if (file >> value) return value;
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
  std::ifstream file("/proc/self/statm");
  std::int64_t total = 0, resident = 0;
  file >> total >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

namespace {

// What the control group of a process leaves, and those above it. Files that were read and can be dropped count
// in what is used.
std::optional<std::int64_t> room_of_group() {
  std::optional<std::int64_t> room;
  const auto look_at = [&](const std::string& folder, const char* limit_name, const char* used_name,
                           const char* droppable) {
    const auto limit = number_in((folder + "/" + limit_name).c_str()),
               used = number_in((folder + "/" + used_name).c_str());
    if (!limit || !used) return;
    std::ifstream statistics(folder + "/memory.stat");
    std::int64_t dropped = 0, value = 0;
    for (std::string name; statistics >> name >> value;)
      if (name == droppable) dropped = value;
    const std::int64_t left = std::max<std::int64_t>(0, *limit - std::max<std::int64_t>(0, *used - dropped));
    room = std::min(room.value_or(left), left);
  };
  // "0::/path" of version 2, "5:memory:/path" of version 1. Within a container the path may be that of the
  // host, and the container's own group is the root.
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string kind = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    while (true) {
      if (kind.empty()) look_at("/sys/fs/cgroup" + path, "memory.max", "memory.current", "inactive_file");
      if (kind == "memory")
        look_at("/sys/fs/cgroup/memory" + path, "memory.limit_in_bytes", "memory.usage_in_bytes",
                "total_inactive_file");
      const std::size_t slash = path.find_last_of('/');
      if (slash == std::string::npos || path.empty()) break;
      path.resize(slash);
    }
  }
  return room;
}

}  // namespace

MemoryRoom memory_room() {
  MemoryRoom room;
  if (const auto free = kib_line("/proc/meminfo", "MemAvailable:")) room.shared = *free;
  if (const auto group = room_of_group(); group && *group < room.shared) {
    room.shared = *group;
    room.of_shared = "this machine's control group";
  }
  rlimit limit{};
  if (::getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
    const std::int64_t used = kib_line("/proc/self/status", "VmSize:").value_or(0);
    room.own = std::max<std::int64_t>(0, static_cast<std::int64_t>(limit.rlim_cur) - used);
  }
  return room;
}

std::optional<std::int64_t> available_memory() {
  const MemoryRoom room = memory_room();
  const std::int64_t least = std::min(room.shared, room.own);
  return least == INT64_MAX ? std::nullopt : std::optional(least);
}

}  // namespace switchyard
