// The directory that a run writes to: config.json (the resolved configuration), metrics.jsonl, checkpoints/.
#pragma once

#include <filesystem>

#include "config/config.h"

namespace switchyard::train {

enum class ExistingRun { refuse, continue_it };  // without --resume, with --resume

class RunDirectory {
 public:
  // Creates the directory and its parents, locks it against a second process and writes config.json. Throws
  // InputError where it cannot be written, where another process trains in it, or, for `refuse`, where a run is
  // already in it (then nothing in it was touched).
  RunDirectory(std::filesystem::path path, const config::Run& run, ExistingRun existing);
  ~RunDirectory();
  RunDirectory(const RunDirectory&) = delete;
  RunDirectory& operator=(const RunDirectory&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path config_path() const { return path_ / "config.json"; }
  std::filesystem::path metrics_path() const { return path_ / "metrics.jsonl"; }
  std::filesystem::path tensorboard_path() const { return path_ / "tensorboard"; }

 private:
  std::filesystem::path path_;
  int lock_ = -1;  // the directory itself, open and locked
};

}  // namespace switchyard::train
