#include "train/run_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "checkpoint/checkpoint.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"

namespace switchyard::train {

namespace {

namespace fs = std::filesystem;

// What shows that a run was here, or nothing. A config.json alone does not: a run that failed before its first
// step leaves one, and the next may take its place.
const char* trace_of_a_run(const fs::path& directory) {
  std::error_code error;
  if (const auto size = fs::file_size(directory / "metrics.jsonl", error); !error && size > 0)
    return "metrics.jsonl";
  const fs::path checkpoints = checkpoint::checkpoints_directory(directory);
  if (fs::is_directory(checkpoints, error) && !fs::is_empty(checkpoints, error)) return "checkpoints/";
  return nullptr;
}

// True for a config.json that a run of this program wrote, or that is not there.
bool may_be_replaced(const fs::path& config) {
  if (!fs::exists(config)) return true;
  const std::optional<Json> json = try_parse_json(read_text_file(config));
  return json && json->contains("model") && json->contains("train");
}

}  // namespace

RunDirectory::RunDirectory(fs::path path, const config::Run& run, ExistingRun existing)
    : path_(std::move(path)) {
  std::error_code error;
  fs::create_directories(path_, error);
  if (error || !fs::is_directory(path_))
    throw_input("{}: cannot be made the output directory: {}; choose another one with --out", path_.string(),
                error ? error.message() : "it is not a directory");
  lock_ = ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (lock_ < 0)
    throw_input("{}: cannot be opened: {}; nothing would keep a second process out of it", path_.string(),
                std::generic_category().message(errno));
  // Some network file systems know no locks; there the second process is the user's own care.
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    ::close(lock_);
    throw_input("{}: another process is training in this directory; wait for it or choose another --out",
                path_.string());
  }
  try {
    if (existing == ExistingRun::refuse) {
      if (const char* trace = trace_of_a_run(path_))
        throw_input("{}: holds a run already ({}); continue it with --resume auto or choose another --out",
                    path_.string(), trace);
    }
    if (!may_be_replaced(config_path()))
      throw_input("{}: is not a run's configuration and would be overwritten; choose another --out",
                  config_path().string());
    const fs::path temporary = path_ / ".tmp_config.json";
    write_text_file(temporary, run.resolved_json);
    fs::rename(temporary, config_path(), error);
    if (error) throw_input("{}: cannot be written: {}", config_path().string(), error.message());
    sync_directory(path_);
  } catch (...) {
    fs::remove(path_ / ".tmp_config.json", error);
    ::close(lock_);
    throw;
  }
}

RunDirectory::~RunDirectory() {
  if (lock_ >= 0) ::close(lock_);
}

}  // namespace switchyard::train
