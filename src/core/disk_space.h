// How much room a file system has.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

namespace switchyard {

struct DiskSpace {
  std::uint64_t size = 0, free = 0;  // bytes; free: to who is not root
};
// Of the file system that `directory` is on; no value where it does not say.
std::optional<DiskSpace> disk_space(const std::filesystem::path& directory);

}  // namespace switchyard
