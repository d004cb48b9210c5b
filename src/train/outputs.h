// What a training run writes and prints: the run directory, one record a step in metrics.jsonl and in
// TensorBoard's file, and the lines on the console.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/run_state.h"
#include "config/config.h"
#include "model/cost.h"
#include "train/console.h"
#include "train/evaluator.h"
#include "train/expert_load.h"
#include "train/metrics_log.h"
#include "train/run_directory.h"
#include "train/step.h"
#include "train/tensorboard_log.h"

namespace switchyard::train {

// What a model has scored in a task of eval.tasks.
struct TaskScore {
  std::string name;
  std::vector<std::pair<std::string, double>> figures;  // "acc", "acc_stderr", ...
};
// "step 40  arc: acc 0.2500, acc_norm 0.3100": without standard errors.
std::string format_task(std::int64_t step, const TaskScore& task);

// A step that is over, and where the run stands after it.
struct StepOutcome {
  const StepResult& result;
  const checkpoint::RunState& state;
  double lr = 0;
  double tokens_per_second = 0;
  double epoch = 0;                        // most of any domain
  double product_rate = 0;                 // FLOP/s; 0: not known
  const LoadAverage& load;                 // moving average over steps
  const EvalResult* validation = nullptr;  // where it was evaluated
  std::span<const TaskScore> tasks{};      // where they were asked
  const RankFigures& ranks;
  IdealBytes ideal_bytes{};
  int expert_ranks = 1;           // that hold the experts once
  double even_rows = 1;           // of a rank's experts, for one micro-batch
  std::int64_t steps_redone = 0;  // in rounds, since the process began
};

// A line of metrics.jsonl. The headline's balance figures are over the main layers alone, which are what an
// evaluation sees.
MetricsRecord step_record(const StepOutcome& outcome, const model::Transformer& model,
                          const model::FlopCounter& flops);
// What the console says of it. seconds_left, steps: of the run.
StepReport step_report(const StepOutcome& outcome, const model::Transformer& model, std::int64_t steps,
                       double seconds_left);

class Outputs {
 public:
  // Creates and locks the run directory (run_directory.h) and opens the logs behind `step`, but for `leave`, of
  // which nothing is written. Throws InputError where it cannot be written, or, for `refuse`, where a run is
  // already in it.
  Outputs(const std::filesystem::path& directory, const config::Run& run, ExistingRun existing,
          std::int64_t step);

  const std::filesystem::path& directory() const { return directory_.path(); }
  Console& console() { return console_; }

  // Where the run goes back by itself to its checkpoint of `step`: what came after it is set aside
  // (run_directory.h), and dropped from the logs.
  void go_back(std::int64_t step);
  void append(std::int64_t step, const MetricsRecord& record);
  void sync() { metrics_->sync(); }  // metrics.jsonl is on the disk up to here
  void close();

 private:
  // What a resumed run, or one that went back, writes goes on from its step: what the logs say of later ones is
  // dropped.
  void open_logs(std::int64_t step);

  bool with_tensorboard_;
  RunDirectory directory_;
  std::optional<MetricsLog> metrics_;          // not for `leave`; opened anew where the run goes back
  std::optional<TensorBoardLog> tensorboard_;  // with log.tensorboard
  Console console_;
};

}  // namespace switchyard::train
