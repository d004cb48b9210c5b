#include "core/system_file.h"

#include <fmt/format.h>

#include <atomic>
#include <cerrno>
#include <system_error>

#include "core/log.h"

namespace switchyard {

namespace {

void warn_once(const std::filesystem::path& path, const std::error_code& error) {
  static std::atomic<bool> said = false;
  for (const std::errc silent : {std::errc::no_such_file_or_directory, std::errc::not_a_directory,
                                 std::errc::permission_denied, std::errc::operation_not_permitted})
    if (error == silent) return;
  if (said.exchange(true)) return;
  log_warning(
      fmt::format("{}: cannot be read: {}; this process goes on without what such files say of memory "
                  "and processors",
                  path.string(), error.message()));
}

}  // namespace

std::ifstream open_system_file(const std::filesystem::path& path) {
  errno = 0;
  std::ifstream file(path);
  if (!file.is_open()) warn_once(path, {errno, std::generic_category()});
  return file;
}

std::filesystem::directory_iterator open_system_directory(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::directory_iterator entries(path, error);
  if (error) warn_once(path, error);
  return entries;
}

}  // namespace switchyard
