// Checkpoints of a run: RUN/checkpoints/step_NNNNNN/ and the relative symlink RUN/checkpoints/latest.
//
// clang-format off
//   config.json         the model in Hugging Face's keys, for `transformers` and for eval
//   model.safetensors   the float32 weights, under Hugging Face's names
//   state.safetensors   AdamW's moments "<name>.exp_avg", "<name>.exp_avg_sq" of what it trains, and what else a
//                       run carries from step to step, each under the name that the caller gives it
//   run.json            where the run stands (RunState), what its data are, the resolved configuration
//   modeling_switchyard.py                 the router for `transformers`, where it is not the layout's own
//   tokenizer_meta.json, tokenizer.json    which tokenizer made the data, where meta.json beside it says so
//   manifest.json       size and CRC-32 of every other file; written last
// clang-format on
//
// A checkpoint is written under a temporary name beside its own and renamed when every file is on the disk, so
// a step_NNNNNN is whole or absent. A reader refuses what the manifest does not vouch for. Weights may also be
// split over several files, model-*.safetensors, all of them in the manifest.
//
// A checkpoint does not tell how many ranks wrote it, nor who held what: its bytes are those of one rank, and
// any number of ranks reads it. Functions that take a group are called by all of its ranks, which see one
// directory, and throw on all where one fails.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/manifest.h"
#include "checkpoint/model_weights.h"
#include "checkpoint/run_state.h"
#include "checkpoint/safetensors.h"
#include "config/config.h"
#include "core/parameters.h"
#include "parallel/group.h"

namespace switchyard::checkpoint {

std::filesystem::path checkpoints_directory(const std::filesystem::path& run_directory);  // RUN/checkpoints
std::filesystem::path checkpoint_path(const std::filesystem::path& run_directory, std::int64_t step);

// Writes RUN/checkpoints/step_NNNNNN (replacing one of the same step), points `latest` to it and returns its
// path. Every rank writes what it owns of the store, which is a training one, or has the first rank write it
// (run.checkpoint.writers); all else is the first rank's: `extra_state`, the tensors beside the moments, which
// all ranks have, and `data`, the data's fingerprint (train/resume_checks.h), or empty. Temporaries that a
// killed process left are removed first. What was written is synced and, with run.checkpoint.verify, read back
// from the disk and compared with the sums of the memory it came from before the checkpoint takes its name.
// Throws InputError where the place is not writable or too full (checked before the first byte); then the
// temporary is gone, and `latest` and every earlier checkpoint are as they were.
std::filesystem::path save_checkpoint(const std::filesystem::path& run_directory, const ParameterStore& store,
                                      const RunState& state, const config::Run& run,
                                      std::span<const NamedTensor> extra_state, const std::string& data,
                                      const parallel::Group& all);

// The steps with a directory in checkpoints/, ascending, whole or not. Throws InputError where it is there and
// cannot be read.
std::vector<std::int64_t> checkpoint_steps(const std::filesystem::path& run_directory);
// Removes all checkpoints but
//   - the newest `keep` (0: removes none) and the one that `latest` points to;
//   - those of a step that is a multiple of `keep_every`, where that is not 0;
//   - with keep_best, the one of the lowest validation loss, among those that were validated at their step;
//     `best` in checkpoints/ points to it;
//   - the newest that was not saved amid steps that were left out (train/spike.h), to which the run may go
//   back;
//   - the one of the lowest training loss, where the newest one's is far above it (kFarAbove): a run that
//     diverges must not take the place of what it had reached.
// What a stopped save left goes, too. Throws InputError where a checkpoint cannot be removed or `best` not be
// set.
constexpr double kFarAbove = 1.2;
void prune_checkpoints(const std::filesystem::path& run_directory, const config::Checkpoint& options);

// Of a run that goes on from its checkpoint of `step` although it has later ones: `latest` points to it from
// here on, and the later ones move to OTHER/checkpoints, which is a link to RUN/checkpoints/NAME, NAME being
// OTHER's, where RUN/checkpoints is on another disk than RUN; a `best` that pointed to one of them is gone.
// Killed meanwhile, it leaves a run that goes on from `step`. Throws InputError where one of it cannot be done;
// where none could be moved `latest` is the newest again.
void move_later_checkpoints(const std::filesystem::path& run_directory, std::int64_t step,
                            const std::filesystem::path& other);

// The checkpoint that `latest` points to, whole or not, or else the newest step_NNNNNN with a manifest; none:
// no value.
std::optional<std::filesystem::path> find_latest(const std::filesystem::path& run_directory);

// The checkpoint that a user means by a path: a checkpoint, a link to one (checkpoints/latest), a run directory
// or its checkpoints/. Throws InputError where there is none.
std::filesystem::path resolve_checkpoint(const std::filesystem::path& path);

// A key of config.json in which two models differ, and its two values as JSON ("nothing": absent). A default
// that is spelt out makes no difference.
struct ModelDifference {
  std::string key, here, there;
};
std::vector<ModelDifference> differences_of(const config::Model& here, const config::Model& there);
// The same of `router`, of the keys that both have.
std::vector<ModelDifference> differences_of(const config::Router& here, const config::Router& there);

// A checkpoint opened for reading, its manifest verified: every file there, none besides, sizes and sums right.
class Checkpoint {
 public:
  // `path` as resolve_checkpoint takes it. Throws InputError naming the file and what is wrong with it.
  explicit Checkpoint(const std::filesystem::path& path);
  // The same by all ranks: the first decides which checkpoint the path means, and each sums a part of the
  // files.
  Checkpoint(const std::filesystem::path& path, const parallel::Group& all);

  const std::filesystem::path& path() const { return path_; }
  const RunState& state() const { return run_.state; }
  config::Model model() const;                                   // parsed from config.json
  const std::string& model_json() const { return model_json_; }  // config.json, Hugging Face's keys
  const std::string& run_config_json() const {
    return run_.config_json;
  }                                                           // the resolved configuration, as text
  const std::string& data() const { return run_.data; }       // its data's fingerprint; empty: none was kept
  std::uint64_t total_bytes() const { return total_bytes_; }  // of all files, the manifest included
  const ModelWeights& weights() const { return *weights_; }
  const SafetensorsFile& state_file() const { return state_tensors_.front(); }

  // Throws InputError, listing every key that differs, where a run of this configuration cannot continue from
  // here: another model or another seed.
  void check_resumable(const config::Run& run) const;
  // Fills the store's values, those that this rank holds. Each row is present once, with its shape, and nothing
  // else is; else InputError with all names that are missing or too many.
  void load_weights(ParameterStore& store) const;
  // Fills the moments that this rank holds, and the extra tensors; the same rules.
  void load_state(ParameterStore& store, std::span<const NamedTensor> extra_state) const;

 private:
  void open(const std::vector<ManifestEntry>& files);

  std::filesystem::path path_;
  RunRecord run_;
  std::string model_json_;
  std::uint64_t total_bytes_ = 0;
  std::optional<ModelWeights> weights_;         // always there once constructed
  std::vector<SafetensorsFile> state_tensors_;  // one file
};

}  // namespace switchyard::checkpoint
