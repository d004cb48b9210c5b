// Which checkpoints of a run stay.
#pragma once

#include <filesystem>

#include "config/config.h"

namespace switchyard::train {

// Removes all checkpoints but
//   - the newest `keep` (0: removes none) and the one that `latest` points to;
//   - those of a step that is a multiple of `keep_every`, where that is not 0;
//   - with keep_best, the one of the lowest validation loss, among those that were validated at their step;
//     `best` in checkpoints/ points to it;
//   - the newest that was not saved amid steps that were left out (train/spike.h), to which the run may go
//   back;
//   - the one of the lowest training loss, where the newest one's is far above it (kFarAbove): a run that
//     diverges must not take the place of what it had reached.
// Throws InputError where a checkpoint cannot be removed or `best` not be set.
constexpr double kFarAbove = 1.2;
void prune_checkpoints(const std::filesystem::path& run_directory, const config::Checkpoint& options);

}  // namespace switchyard::train
