// The directory that a run writes to: config.json (the resolved configuration), metrics.jsonl, checkpoints/,
// and abandoned_N/, runs like it, where it went on from an earlier checkpoint than its newest.
#pragma once

#include <cstdint>
#include <filesystem>

#include "config/config.h"

namespace switchyard::train {

// What becomes of a run that is in the directory already.
enum class ExistingRun {
  refuse,
  go_on,    // from its newest checkpoint, if it has one
  go_back,  // to another one of its checkpoints
  leave     // as it is: nothing is to be done
};

class RunDirectory {
 public:
  // Creates the directory and its parents, locks it against a second process and writes config.json. Throws
  // InputError where it cannot be written, where another process trains in it, for `refuse` where a run is
  // already in it, or for `go_on` where another process has saved a newer checkpoint since this one looked
  // (then nothing in it was touched). `go_on` and `go_back`: set_aside_after(step).
  RunDirectory(std::filesystem::path path, const config::Run& run, ExistingRun existing, std::int64_t step);
  ~RunDirectory();
  RunDirectory(const RunDirectory&) = delete;
  RunDirectory& operator=(const RunDirectory&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path config_path() const { return path_ / "config.json"; }
  std::filesystem::path metrics_path() const { return path_ / "metrics.jsonl"; }
  std::filesystem::path tensorboard_path() const { return path_ / "tensorboard"; }

  // Before the run goes on from its checkpoint of `step`, if it has that: checkpoints of later steps move to
  // abandoned_N, N being free, and evaluations of them (eval*.json with a later "step"), with copies of
  // config.json and the logs. Throws InputError where that cannot be done; then nothing has moved, or the run
  // goes on from `step`.
  void set_aside_after(std::int64_t step) const;

 private:
  std::filesystem::path path_;
  int lock_ = -1;  // the directory itself, open and locked
};

}  // namespace switchyard::train
