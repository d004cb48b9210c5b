#include "core/disk_space.h"

#include <sys/statvfs.h>

namespace switchyard {

std::optional<DiskSpace> disk_space(const std::filesystem::path& directory) {
  struct statvfs info {};
  if (::statvfs(directory.c_str(), &info) != 0 || info.f_blocks == 0) return std::nullopt;
  return DiskSpace{.size = std::uint64_t{info.f_blocks} * info.f_frsize,
                   .free = std::uint64_t{info.f_bavail} * info.f_frsize};
}

}  // namespace switchyard
