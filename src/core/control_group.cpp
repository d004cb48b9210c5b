#include "core/control_group.h"

#include <algorithm>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "core/system_file.h"

namespace switchyard {

namespace {

namespace fs = std::filesystem;

// A file that begins with a number; no value where there is none, as "max".
std::optional<std::int64_t> number_in(const fs::path& path) {
  std::ifstream file = open_system_file(path);
  std::int64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;
}

// The number behind `key` in a file of lines "key number".
std::optional<std::int64_t> number_of(const fs::path& path, std::string_view key) {
  std::ifstream file = open_system_file(path);
  std::string name;
  for (std::int64_t value = 0; file >> name >> value;)
    if (name == key) return value;
  return std::nullopt;
}

bool has_word(const std::string& list, std::string_view word) {
  std::istringstream words(list);
  for (std::string each; std::getline(words, each, ',');)
    if (each == word) return true;
  return false;
}

// The folders of the process's group and of those around it, the own first. In a container the path may be that
// of the machine, of which only the container's own part is there, at the top: that one is taken, too.
std::vector<fs::path> folders_of(const fs::path& mount, const std::string& group) {
  std::vector<fs::path> folders;
  std::error_code ignored;
  for (fs::path path = fs::path(group).relative_path(); !path.empty(); path = path.parent_path())
    if (fs::is_directory(mount / path, ignored)) folders.push_back(mount / path);
  if (fs::is_directory(mount, ignored)) folders.push_back(mount);
  return folders;
}

// The path of the process's group in the hierarchy of a controller of version 1; version 2: the controller "".
std::optional<std::string> group_of(const fs::path& root, std::string_view controller) {
  std::ifstream file = open_system_file(root / "proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (controller.empty() ? line.starts_with("0::") : has_word(controllers, controller))
      return line.substr(second + 1);
  }
  return std::nullopt;
}

// Version 1: every controller has its own folder, or one with others ("cpu,cpuacct").
std::vector<fs::path> first_folders(const fs::path& root, std::string_view controller) {
  const auto group = group_of(root, controller);
  const fs::path base = root / "sys/fs/cgroup";
  std::error_code error;
  if (!group) return {};
  for (fs::directory_iterator entries = open_system_directory(base), end; !error && entries != end;
       entries.increment(error))
    if (has_word(entries->path().filename().string(), controller)) return folders_of(entries->path(), *group);
  return {};
}

// Version 2: one folder, itself or beside those of version 1.
std::vector<fs::path> second_folders(const fs::path& root) {
  const fs::path base = root / "sys/fs/cgroup";
  const std::string group = group_of(root, "").value_or("/");
  std::error_code ignored;
  if (fs::exists(base / "cgroup.controllers", ignored)) return folders_of(base, group);
  if (fs::exists(base / "unified/cgroup.controllers", ignored)) return folders_of(base / "unified", group);
  // A tree of which only the limits can be seen.
  return fs::exists(base / "memory.max", ignored) ? folders_of(base, group) : std::vector<fs::path>();
}

void limit_cores(ControlGroup& found, std::int64_t quota, std::int64_t period) {
  if (quota <= 0 || period <= 0) return;
  const double cores = static_cast<double>(quota) / static_cast<double>(period);
  found.cores = std::min(found.cores.value_or(cores), cores);
}

// `cache`: what of `used` are files that are not in use.
void limit_memory(ControlGroup& found, std::optional<std::int64_t> limit, std::optional<std::int64_t> used,
                  std::int64_t cache) {
  // Version 1 writes "no limit" as the largest multiple of a page.
  constexpr std::int64_t kNoLimit = std::int64_t{1} << 60;
  if (!limit || *limit >= kNoLimit) return;
  const std::int64_t left = std::clamp<std::int64_t>(*limit - used.value_or(0) + cache, 0, *limit);
  if (found.memory_left && *found.memory_left <= left) return;
  found.memory_limit = limit;
  found.memory_left = left;
}

}  // namespace

ControlGroup control_group(const fs::path& root) {
  ControlGroup found;
  for (const fs::path& folder : second_folders(root)) {
    std::ifstream cores = open_system_file(folder / "cpu.max");
    std::int64_t quota = 0, period = 0;
    if (cores >> quota >> period) limit_cores(found, quota, period);
    if (number_of(folder / "memory.stat", "inactive_file")) found.version = 2;
    limit_memory(found, number_in(folder / "memory.max"), number_in(folder / "memory.current"),
                 number_of(folder / "memory.stat", "inactive_file").value_or(0));
  }
  if (found.memory_limit) found.version = 2;
  for (const fs::path& folder : first_folders(root, "cpu"))
    limit_cores(found, number_in(folder / "cpu.cfs_quota_us").value_or(-1),
                number_in(folder / "cpu.cfs_period_us").value_or(0));
  for (const fs::path& folder : first_folders(root, "memory")) {
    if (!found.memory_limit) found.version = 1;
    limit_memory(found, number_in(folder / "memory.limit_in_bytes"),
                 number_in(folder / "memory.usage_in_bytes"),
                 number_of(folder / "memory.stat", "total_inactive_file").value_or(0));
  }
  return found;
}

std::int64_t killed_for_memory(const fs::path& root) {
  std::int64_t kills = number_of(root / "proc/vmstat", "oom_kill").value_or(0);
  for (const fs::path& folder : second_folders(root))
    kills += number_of(folder / "memory.events", "oom_kill").value_or(0);
  for (const fs::path& folder : first_folders(root, "memory"))
    kills += number_of(folder / "memory.oom_control", "oom_kill").value_or(0);
  return kills;
}

}  // namespace switchyard
