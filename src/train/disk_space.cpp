#include "train/disk_space.h"

#include <sys/statvfs.h>

#include "core/error.h"

namespace switchyard::train {

void require_free_space(const std::filesystem::path& directory, std::uint64_t needed) {
  struct statvfs info {};
  if (::statvfs(directory.c_str(), &info) != 0 || info.f_blocks == 0) return;
  const std::uint64_t free = std::uint64_t{info.f_bavail} * info.f_frsize;
  if (free < needed)
    throw_input("{}: {} bytes are needed and {} are free; free some space or choose another --out",
                directory.string(), needed, free);
}

}  // namespace switchyard::train
