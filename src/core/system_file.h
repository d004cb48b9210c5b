// Files by which the kernel tells of itself, under /proc and /sys.
#pragma once

#include <filesystem>
#include <fstream>

namespace switchyard {

// For reading. What a run learns there it can do without: where there is no such file, or it is not for this
// user, nothing is said. Any other failure (no file descriptor or memory left) is a warning, the first time in
// a process alone. Either way the stream is one that has failed.
std::ifstream open_system_file(const std::filesystem::path& path);

}  // namespace switchyard
