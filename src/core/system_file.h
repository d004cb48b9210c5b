// Files by which the kernel tells of itself, under /proc and /sys.
//
// What a run learns there it can do without: where there is no such file, or it is not for this user, nothing
// is said. Any other failure (no file descriptor or memory left) is a warning, the first time in a process
// alone. Either way there is nothing to read.
#pragma once

#include <filesystem>
#include <fstream>

namespace switchyard {

std::ifstream open_system_file(const std::filesystem::path& path);
std::filesystem::directory_iterator open_system_directory(const std::filesystem::path& path);

}  // namespace switchyard
