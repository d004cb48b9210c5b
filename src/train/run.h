// The training loop of one run on the host: where it begins, when it evaluates and saves, which steps it leaves
// out, when it goes back or stops. A step's work on the device is step.h's.
#pragma once

#include <chrono>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "config/config.h"
#include "train/calibration.h"
#include "train/outputs.h"
#include "train/profile_report.h"
#include "train/step.h"

namespace switchyard::checkpoint {
class ModelDirectory;
}

namespace switchyard::train {

struct Resume {
  bool wanted = false;                              // --resume was given
  bool named = false;                               // with a checkpoint or run, not "auto"
  std::optional<std::filesystem::path> checkpoint;  // where to go on from; none: from the start
  // Where the weights of a run from the start come from (model_directory.h); none: they are random.
  std::optional<std::filesystem::path> initial_weights = std::nullopt;
  // Or the dense model that the experts are made of (upcycling.h); not with initial_weights.
  std::optional<std::filesystem::path> dense_weights = std::nullopt;
  bool allow_new_data = false;  // go on although the data are not those of the checkpoint
  bool strict = false;          // of initial_weights: router and text tokens must be theirs
  // Over which a router is fitted (router_fit.h): of type lpr to the gate of initial_weights, or a linear gate
  // to clusters of what it sees in the dense model; 0: it begins at random.
  std::int64_t fit_tokens = 0;
};

enum class RunEnd { finished, interrupted };

// Asks the run's tasks (eval.tasks), which this module knows nothing of: of a model that is planned for
// micro_batch_size x seq_len and stays so, whose passes go through `forward`. All ranks of `all` call it
// together.
using Forward = std::function<void(const model::Batch&)>;
using AskTasks = std::function<std::vector<TaskScore>(model::Transformer& model, Context& ctx,
                                                      const parallel::Group& all, const Forward& forward)>;

class TrainingRun {
 public:
  // Opens the data, makes the model, loads the checkpoint if any and creates the run directory; throws
  // InputError before anything is written where one of these cannot be. All ranks of `world` construct it with
  // the same arguments, and call its functions together; rank 0 alone writes logs and to the console.
  TrainingRun(const config::Run& run, const std::filesystem::path& out, const Resume& resume,
              parallel::World& world, Device device = Device::cpu, AskTasks ask_tasks = {});

  // Trains up to train.steps, or until `stop_requested` reads true on a rank after a step; then saves and
  // returns. Throws RunError where a loss or gradient is not finite and train.spike cannot leave the step out
  // or go back.
  RunEnd run(const volatile std::sig_atomic_t& stop_requested);

 private:
  using Clock = std::chrono::steady_clock;

  // Weights and all else that the run begins with: of a checkpoint, of a model directory, or random.
  void begin(const Resume& resume);
  void fit_router(const checkpoint::ModelDirectory& directory, std::int64_t tokens);
  CalibrationSettings fit_settings(std::int64_t tokens) const;
  void cluster_router(const std::filesystem::path& dense, std::int64_t tokens);
  ExistingRun existing_run(const Resume& resume) const;
  void load(const checkpoint::Checkpoint& checkpoint);  // weights, moments and all else
  void describe_memory(const model::Transformer& model, const MemoryPlan& plan, const Available& available,
                       Device device) const;
  void describe(const Resume& resume) const;
  void describe_data() const;

  // One step, learned from or left out (then `spike` says why). Advances the run by a step either way.
  StepResult step(std::string& spike);
  std::string reason_to_leave_out(const StepResult& result) const;
  bool detects_spikes() const {
    return run_.train.spike.deviations > 0 || run_.train.spike.grad_norm_factor > 0;
  }
  [[noreturn]] void stop_for(const char* what, const std::string& tensor) const;
  std::optional<std::filesystem::path> find_latest() const;  // as rank 0 sees it
  // The checkpoint to go back to, as rank 0 sees them.
  std::filesystem::path good_checkpoint(const std::string& spike) const;
  std::string last_checkpoint_note() const;
  // After too many steps in a row that were left out: the run stands where its last good checkpoint does, and
  // its data go on behind the ones that were left out. Throws RunError where there is none, or where going back
  // has not helped.
  void go_back(const std::string& spike);

  bool due(std::int64_t every) const {  // at the end, too
    return state_.step == run_.train.steps || (every > 0 && state_.step % every == 0);
  }
  bool is_evaluated() const { return !data_.validation.empty() || ask_tasks_; }
  void settle_if_due();
  // Nothing where it is due but the weights have diverged, and the next step can send the run back.
  std::optional<EvalResult> evaluate_if_due();
  std::vector<TaskScore> ask_tasks_if_due();
  void save_if_due(const EvalResult* validation, bool stopped);
  bool is_first() const { return world_.rank() == 0; }
  // Whether a rank wants to stop, and whether a checkpoint is due by the clock of the first: the same on all.
  struct Wishes {
    bool stop, save;
  };
  void begin_profile();
  void report_profile();
  void count_redone(const ExpertNeed& experts);
  void warn_of_late_kernels();
  Wishes agree_on_wishes(bool stop_requested) const;
  double epochs_of(std::uint64_t samples, std::size_t domain) const;
  double most_epochs() const;  // of any domain, as far as the run has come
  double seconds_left() const;
  void warn_of_steps_left_out() const;

  config::Run run_;
  std::filesystem::path out_;
  parallel::World& world_;
  AskTasks ask_tasks_;  // not set: there are none
  parallel::Group all_;
  TrainingData data_;
  Step step_;
  model::FlopCounter flop_counter_;
  LoadAverage load_average_;
  checkpoint::RunState state_;
  std::string data_fingerprint_;
  std::optional<Outputs> outputs_;  // of rank 0, always there once constructed
  RankWatch rank_watch_;
  std::optional<ops::Profile> profile_;  // with log.profile; measures step_'s context
  MachineRates rates_;
  double product_rate_ = 0;        // FLOP/s; 0: not known
  std::int64_t steps_redone_ = 0;  // in rounds, since the process began
  bool warned_of_redone_ = false, warned_of_late_kernels_ = false;
  std::int64_t times_back_ = 0;  // since the last good checkpoint of a step that no going back was from
  std::int64_t back_to_ = 0;     // where it went back to the last time
  std::int64_t back_from_ = 0;   // the latest step that the run went back from
  bool save_is_due_ = false;
  Clock::time_point last_save_{};
  // Where the stretch began that seconds_left() is estimated by.
  Clock::time_point start_{};
  std::int64_t first_step_ = 0;
};

}  // namespace switchyard::train
