// run.json of a checkpoint: where the run stands, what its data are, and its resolved configuration.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard::checkpoint {

constexpr const char* kRunJson = "run.json";

// What the detector of loss spikes (train/spike.h) knows between two steps.
struct SpikeHistory {
  // Of the newest steps that were learned from, at most train.spike.window, oldest first.
  std::vector<double> losses, grad_norms;
  std::int64_t skipped = 0;         // steps of the run that were left out
  std::int64_t skipped_in_row = 0;  // up to now
  std::int64_t rollbacks = 0;       // how often the run went back to a checkpoint
};

// The middle value (of two, their mean); NaN where there is none.
double median_of(std::vector<double> values);

// The median of the newest losses, at most kRecent: where the run stands, whatever a single batch says. NaN
// where there is none.
constexpr std::size_t kRecent = 16;
double recent_loss(const SpikeHistory& history);

// Where a run stands between two optimizer steps.
struct RunState {
  std::int64_t step = 0;      // optimizer steps done
  std::int64_t tokens = 0;    // trained on
  std::uint64_t samples = 0;  // global index of the next sample
  std::uint64_t seed = 0;
  std::int64_t updates = 0;  // of the weights: steps but those left out
  double train_seconds = 0;  // that the run took up to here, over all its processes
  SpikeHistory spikes = {};
  std::optional<double> val_loss = std::nullopt;  // where the run was evaluated at this step
};

// All that run.json holds.
struct RunRecord {
  RunState state;
  std::string config_json;  // the resolved configuration
  std::string data;         // the fingerprint of its data (train/resume_checks.h), JSON; empty: none was kept
};

std::string run_record_json(const RunRecord& record);
// Reads run.json of a checkpoint, without a look at its other files. Keys that older checkpoints do not have
// begin anew. Throws InputError naming the file and the key.
RunRecord read_run_record(const std::filesystem::path& checkpoint);
RunState read_run_state(const std::filesystem::path& checkpoint);  // of the same
RunRecord parse_run_record(std::string_view text,
                           const std::filesystem::path& path);  // a text; `path` names it

}  // namespace switchyard::checkpoint
