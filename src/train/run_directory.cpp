#include "train/run_directory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"

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

// The newest checkpoint is looked for before the directory is locked.
void refuse_newer(const fs::path& directory, std::int64_t step) {
  const std::optional<fs::path> latest = checkpoint::find_latest(directory);
  std::error_code absent;
  if (latest && !fs::equivalent(*latest, checkpoint::checkpoint_path(directory, step), absent))
    throw_input("{}: another process has saved {} there since this one began; start it again",
                directory.string(), latest->filename().string());
}

// RUN/eval.json, and those beside it, that judge a later step.
std::vector<fs::path> evaluations_after(const fs::path& directory, std::int64_t step) {
  std::vector<fs::path> found;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    std::error_code ignored;
    if (!name.starts_with("eval") || !name.ends_with(".json") || !it->is_regular_file(ignored)) continue;
    const std::optional<Json> json = try_parse_json(read_text_file(it->path()));
    const Json* const judged = json && json->is_object() ? json->find("step") : nullptr;
    if (judged != nullptr && judged->is_integer() && judged->integer() > step) found.push_back(it->path());
  }
  return found;
}

}  // namespace

RunDirectory::RunDirectory(fs::path path, const config::Run& run, ExistingRun existing, std::int64_t step)
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
    if (existing == ExistingRun::leave) return;
    if (!may_be_replaced(config_path()))
      throw_input("{}: is not a run's configuration and would be overwritten; choose another --out",
                  config_path().string());
    if (existing == ExistingRun::go_on) refuse_newer(path_, step);
    set_aside_after(step);
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

void RunDirectory::set_aside_after(std::int64_t step) const {
  std::vector<std::int64_t> later = checkpoint::checkpoint_steps(path_);
  std::erase_if(later, [step](std::int64_t each) { return each <= step; });
  if (later.empty() || !fs::exists(checkpoint::checkpoint_path(path_, step))) return;
  fs::path other;
  const auto is_taken = [&] {
    return fs::exists(other) || fs::exists(checkpoint::checkpoints_directory(path_) / other.filename());
  };
  for (int n = 1; other.empty() || is_taken(); ++n) other = path_ / fmt::format("abandoned_{}", n);
  // The log first: it is cut when the run goes on.
  std::error_code error;
  fs::create_directory(other, error);
  for (const fs::path& each : {config_path(), metrics_path(), tensorboard_path()})
    if (!error && fs::exists(each)) fs::copy(each, other / each.filename(), fs::copy_options::recursive, error);
  const auto leave_as_it_is = [&] {
    std::error_code ignored;
    fs::remove_all(other, ignored);
  };
  if (error) {
    leave_as_it_is();
    throw_input("{}: what the run has done after step {} cannot be set aside there: {}", other.string(), step,
                error.message());
  }
  try {
    checkpoint::move_later_checkpoints(path_, step, other);
  } catch (...) {
    if (checkpoint::checkpoint_steps(other).empty()) leave_as_it_is();
    throw;
  }
  for (const fs::path& evaluation : evaluations_after(path_, step)) {
    fs::rename(evaluation, other / evaluation.filename(), error);
    if (error)
      throw_input("{}: judges a checkpoint that the run has left, and cannot be moved to {}: {}; remove it",
                  evaluation.string(), other.string(), error.message());
  }
  log_warning(fmt::format(
      "{}: goes on from step {}; its {} later checkpoint{}, to step {}, and its log until then are now the run "
      "{}; "
      "remove it when it is not needed",
      path_.string(), step, later.size(), later.size() == 1 ? "" : "s", later.back(), other.string()));
}

RunDirectory::~RunDirectory() {
  if (lock_ >= 0) ::close(lock_);
}

}  // namespace switchyard::train
