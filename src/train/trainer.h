// The training loop of one run: data in, parameters updated, metrics and checkpoints out.
#pragma once

#include <csignal>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "config/config.h"
#include "core/context.h"
#include "data/dataset.h"
#include "model/flops.h"
#include "model/transformer.h"
#include "ops/replay.h"
#include "parallel/communicator.h"
#include "train/evaluator.h"
#include "train/expert_load.h"
#include "train/host_record.h"
#include "train/memory_plan.h"
#include "train/metrics_log.h"
#include "train/optimizer.h"
#include "train/run_directory.h"
#include "train/tensorboard_log.h"
#include "train/token_data.h"

namespace switchyard::train {

struct Resume {
  bool wanted = false;                              // --resume was given
  std::optional<std::filesystem::path> checkpoint;  // where to go on from; none: from the start
  // Where the weights of a run from the start come from (model_directory.h); none: they are random.
  std::optional<std::filesystem::path> initial_weights = std::nullopt;
  bool allow_new_data = false;  // go on although the data are not those of the checkpoint
};

enum class RunEnd { finished, interrupted };

class Trainer {
 public:
  // Opens the data, makes the model, loads the checkpoint if any and creates the run directory; throws
  // InputError before anything is written where one of these cannot be.
  Trainer(const config::Run& run, const std::filesystem::path& out, const Resume& resume,
          parallel::Communicator& communicator, Device device = Device::cpu);

  // Trains up to train.steps, or until `stop_requested` reads true after a step; then saves and returns. Throws
  // RunError where a loss or gradient is not finite and train.spike cannot leave the step out or go back.
  RunEnd run(const volatile std::sig_atomic_t& stop_requested);

 private:
  struct StepResult {
    double loss = 0;       // nats a token, mean over the global batch
    double mtp_loss = 0;   // the same of multi-token prediction: mean over depths of their means
    double grad_norm = 0;  // before clipping
    double lr = 0;
    double balance_loss = 0, z_loss = 0;
    double router_loss = 0;  // the routers' own
    std::string spike;       // why the step was left out (train/spike.h); empty: it was learned from
  };
  // One step, learned from or left out. Advances the run by a step either way.
  StepResult step();
  std::string reason_to_leave_out(const StepResult& result) const;
  bool detects_spikes() const {
    return run_.train.spike.deviations > 0 || run_.train.spike.grad_norm_factor > 0;
  }
  bool weights_are_finite() const;
  std::int64_t micro_tokens() const { return run_.train.micro_batch_size * run_.train.seq_len; }
  router::BalanceFigures headline_figures() const;
  void rehearse();
  void read_data();  // of the whole step
  // The batch lives until the next one is loaded.
  model::Batch load_micro_batch(std::int64_t micro);
  std::vector<double> count_mtp_targets();
  // Whether all micro-batches have the same targets: with a document mask, those of multi-token prediction
  // differ.
  bool steps_are_alike() const { return model_.n_mtp_depths() == 0 || !begin_token_; }
  void count_global_batch();
  // The work of one micro-batch; replayed where steps are alike: then it may not depend on the step.
  void do_or_replay(ops::Replay& replay, const std::function<void()>& work);
  void forward_backward(const model::Batch& batch, bool count_first, std::span<const double> mtp_dloss_K);
  void sum_over_ranks();
  void read_back(StepResult& result, std::span<const double> mtp_share_K);
  std::vector<double> step_slots() const;  // that experts took, of each main layer with experts
  void add_flops(MetricsRecord& record) const;
  void add_machine(MetricsRecord& record, double tokens_per_second) const;
  void write_metrics(const StepResult& result, double tokens_per_second, const EvalResult* validation);
  void save(const EvalResult* validation);
  // Loads weights, moments and all else of a checkpoint.
  void load(const checkpoint::Checkpoint& checkpoint);
  void open_logs();
  // After too many steps in a row that were left out: the run stands where its last good checkpoint does, and
  // its data go on behind the ones that were left out. Throws RunError where there is none, or where going back
  // has not helped.
  void go_back(const StepResult& result);
  double epochs_of(std::uint64_t samples, std::size_t domain) const;
  double most_epochs() const;  // of any domain, as far as the run has come
  void describe_data() const;
  [[noreturn]] void stop_for_loss() const;
  [[noreturn]] void stop_for_gradient() const;
  std::string last_checkpoint_note() const;

  config::Run run_;
  parallel::Communicator& communicator_;
  std::int64_t micro_batches_;
  std::optional<std::int64_t> begin_token_;
  std::vector<Domain> train_domains_, val_domains_;
  data::Sampler sampler_;
  Context ctx_;
  MemoryPlan memory_;
  model::Transformer model_;
  AdamW optimizer_;
  LoadCounts step_load_;
  model::FlopCounter flop_counter_;
  model::TokenCounts step_tokens_;
  LoadAverage load_average_;
  checkpoint::RunState state_;
  std::string data_fingerprint_;
  double product_rate_ = 0;      // FLOP/s; 0: not known
  std::int64_t times_back_ = 0;  // since the last good checkpoint
  BatchBuffers buffers_;
  ops::Replay micro_step_, count_step_;
  std::vector<std::vector<std::size_t>> domain_MB_;  // M micro-batches
  std::vector<std::int32_t> window_;
  // What a step writes and the host reads when it is over. Each has a copy where the device writes it.
  enum Figure { kBalance, kZ, kRouter, kGradSquares, kFigures };
  HostRecord<float> loss_MT_, mtp_loss_MKT_;
  AlignedBuffer micro_losses_;  // one micro-batch's: the same place in every one
  Tensor loss_T_, mtp_loss_KT_;
  HostRecord<std::int32_t> count_MLBE_, dropped_ML_;
  HostRecord<double> figures_;
  std::optional<RunDirectory> directory_;
  std::optional<MetricsLog> metrics_;
  std::optional<TensorBoardLog> tensorboard_;  // with log.tensorboard
};

}  // namespace switchyard::train
