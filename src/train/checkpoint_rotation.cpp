#include "train/checkpoint_rotation.h"

#include <algorithm>
#include <optional>
#include <set>

#include "core/error.h"
#include "train/checkpoint.h"

namespace switchyard::train {

namespace {

namespace fs = std::filesystem;

// The step of the lowest number that `figure` has; of equal ones the newest.
template <class Figure>
std::optional<std::int64_t> lowest(const std::vector<RunState>& states, const Figure& figure) {
  std::optional<std::int64_t> step;
  double least = 0;
  for (const RunState& state : states) {
    const std::optional<double> value = figure(state);
    if (!value || (step && !(*value <= least))) continue;
    step = state.step;
    least = *value;
  }
  return step;
}

std::optional<double> train_loss(const RunState& state) {
  return state.spikes.losses.empty() ? std::nullopt : std::optional(recent_loss(state.spikes));
}

}  // namespace

void prune_checkpoints(const fs::path& run_directory, const config::Checkpoint& options) {
  SY_CHECK(options.keep >= 0 && options.keep_every >= 0, "keep {}, keep_every {}", options.keep,
           options.keep_every);
  const std::vector<std::int64_t> steps = checkpoint_steps(run_directory);
  if (steps.empty()) return;
  std::vector<RunState> states;
  for (const std::int64_t step : steps) {
    try {
      states.push_back(read_run_state(checkpoint_path(run_directory, step)));
    } catch (const InputError&) {
      // Damaged, or of another version: it takes no part in the comparison.
    }
  }

  std::set<std::int64_t> stay;
  if (options.keep_best) {
    const auto best = lowest(states, [](const RunState& state) { return state.val_loss; });
    if (best) {
      point_link_to(run_directory, "best", *best);
      stay.insert(*best);
    }
  }
  if (options.keep == 0) return;
  const auto n_newest = std::min(steps.size(), static_cast<std::size_t>(options.keep));
  stay.insert(steps.end() - static_cast<std::ptrdiff_t>(n_newest), steps.end());
  std::error_code error;
  const fs::path checkpoints = checkpoints_directory(run_directory);
  const std::string latest = fs::read_symlink(checkpoints / "latest", error).filename().string();
  for (const std::int64_t step : steps) {
    if (checkpoint_path(run_directory, step).filename().string() == latest) stay.insert(step);
    if (options.keep_every > 0 && step % options.keep_every == 0) stay.insert(step);
  }
  const auto good = std::find_if(states.rbegin(), states.rend(),
                                 [](const RunState& state) { return state.spikes.skipped_in_row == 0; });
  if (good != states.rend()) stay.insert(good->step);
  if (const auto reached = lowest(states, train_loss)) {
    const auto of = [&](std::int64_t step) {
      return *train_loss(*std::find_if(states.begin(), states.end(),
                                       [&](const RunState& state) { return state.step == step; }));
    };
    const std::optional<double> newest = train_loss(states.back());
    if (newest && *newest > kFarAbove * of(*reached)) stay.insert(*reached);
  }
  for (const std::int64_t step : steps)
    if (!stay.contains(step)) remove_checkpoint(run_directory, step);
}

}  // namespace switchyard::train
