#include "core/process_memory.h"

#include <sys/resource.h>

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

std::optional<std::int64_t> available_memory() {
  std::optional<std::int64_t> free = kib_line("/proc/meminfo", "MemAvailable:");
  // A container may have less than its machine.
  const auto limit = number_in("/sys/fs/cgroup/memory.max"), used = number_in("/sys/fs/cgroup/memory.current");
  if (limit && used) free = std::min(free.value_or(*limit), std::max<std::int64_t>(0, *limit - *used));
  return free;
}

}  // namespace switchyard
