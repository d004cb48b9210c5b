#include "core/system_file.h"

#include <fmt/format.h>

#include <atomic>
#include <cerrno>
#include <system_error>

#include "core/log.h"

namespace switchyard {

std::ifstream open_system_file(const std::filesystem::path& path) {
  static std::atomic<bool> said = false;
  errno = 0;
  std::ifstream file(path);
  const int error = errno;
  const bool silent =
      file.is_open() || error == ENOENT || error == ENOTDIR || error == EACCES || error == EPERM;
  if (!silent && !said.exchange(true))
    log_warning(
        fmt::format("{}: cannot be read: {}; this process goes on without what such files say of memory "
                    "and processors",
                    path.string(), std::generic_category().message(error)));
  return file;
}

}  // namespace switchyard
