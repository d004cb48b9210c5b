// One optimizer step on the device of a run: its micro-batches forward and backward, sums over ranks, the
// gradient's norm, AdamW, and what routers do beside their gradients. What is done with its numbers is the
// run's affair (run.h).
//   M micro-batches of T tokens in B sequences, L layers with a router, E experts, K depths of multi-token
//   prediction
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "config/config.h"
#include "core/context.h"
#include "model/cost.h"
#include "model/transformer.h"
#include "ops/device.h"
#include "parallel/world.h"
#include "train/expert_load.h"
#include "train/gradient_sums.h"
#include "train/memory_plan.h"
#include "train/optimizer.h"
#include "train/ranks.h"
#include "train/token_data.h"

namespace switchyard::train {

// Until the end of its scope a training run computes as evaluation and generation do.
class AsEvaluated {
 public:
  explicit AsEvaluated(Context& ctx) : ctx_(ctx), attention_(ctx.attention), e4m3_layers_(ctx.e4m3_layers) {
    ctx.attention = AttentionBackend::flash;
    ctx.e4m3_layers = false;
  }
  ~AsEvaluated() {
    ctx_.attention = attention_;
    ctx_.e4m3_layers = e4m3_layers_;
  }
  AsEvaluated(const AsEvaluated&) = delete;
  AsEvaluated& operator=(const AsEvaluated&) = delete;

 private:
  Context& ctx_;
  AttentionBackend attention_;
  bool e4m3_layers_;
};

// What a step writes on its device and the host reads when it is over.
// Zeros at first, of the host, and where a device writes them.
template <class T>
struct HostRecord {
  HostRecord(Device device, Shape shape)
      : values(static_cast<std::size_t>(shape.numel())),
        device_copy(device, Tensor(values.data(), shape, DTypeOf<T>::value)) {}
  HostRecord(const HostRecord&) = delete;
  HostRecord& operator=(const HostRecord&) = delete;
  Tensor on_device() const { return device_copy.tensor(); }
  Tensor on_host() { return Tensor(values.data(), on_device().shape(), DTypeOf<T>::value); }
  void read_back() const { device_copy.write_back(); }  // waits

  std::vector<T> values;
  CopyOn device_copy;
};

// Of the whole global batch.
struct StepResult {
  double loss = 0;       // nats a token, mean
  double mtp_loss = 0;   // the same of multi-token prediction: mean over depths of their means
  double grad_norm = 0;  // before clipping
  double balance_loss = 0, z_loss = 0;
  double router_loss = 0;  // the routers' own
  LoadCounts load;
  model::TokenCounts tokens{};
  ExpertNeed experts{};
  // Of this rank's device, in exchanges with others, from where it was last waited for at the end of a step.
  double exchange_seconds = 0;
};

class Step {
 public:
  // Makes the model and takes all memory; parameters are not initialised. `data` outlives this. Throws
  // InputError where there is not enough of it, or the device cannot compute as the configuration asks. All
  // ranks call the same functions of it in the same order. `planned` is called before anything large is taken,
  // and before what does not fit is refused.
  using Planned =
      std::function<void(const model::Transformer& model, const MemoryPlan& plan, const Available& of)>;
  Step(const config::Run& run, const TrainingData& data, parallel::World& world, Device device,
       const Planned& planned = {});

  model::Transformer& model() { return model_; }
  const model::Transformer& model() const { return model_; }
  Context& context() { return ctx_; }
  const Context& context() const { return ctx_; }
  const MemoryPlan& memory() const { return memory_; }
  const parallel::Mesh& mesh() const { return mesh_; }
  IdealBytes ideal_bytes() const {
    return train::ideal_bytes(model_.parameters(), mesh_, run_.parallel.zero, mine_.run);
  }

  // One micro-batch of padding, of which nothing is kept: workspace grows to what a step needs, and memory()
  // knows it. Of several ranks everything else that a step does, or an evaluation, if there is to be one, so
  // that no kernel is new afterwards. Throws RunError where it does not fit.
  void rehearse(bool evaluates);

  // The gradient of step `step` (from 0; where its noise is), whose global batch begins at sample
  // `first_sample`. Waits for the device.
  StepResult compute(std::int64_t step, std::uint64_t first_sample);
  // Learns from it, with learning rate `lr`; `n` counts updates from 1. Without it the step is left out.
  void update(double lr, std::int64_t n);

  // Feeds routers that want it (Router::settle_tokens) the samples from `first_sample` on, in global batches
  // run forward alone: of n of them the i-th (from 0) counts for 1 / (i + 1) of what is kept then, so that the
  // last state is the mean of all solutions. `step`: where their noise is. Before an evaluation or a save.
  void settle_routers(std::int64_t step, std::uint64_t first_sample);

  // Adds what has gone by windows (parallel/token_windows.h) to what this rank has sent: since compute(), which
  // does it. Waits for the device.
  void count_windows();

  bool weights_are_finite() const;  // of any rank
  // The first tensor of the last step that is not finite, in words: as a loss or a gradient that is not says.
  std::string cause_of_loss() const;
  std::string cause_of_gradient() const;

 private:
  std::int64_t micro_tokens() const { return run_.train.micro_batch_size * run_.train.seq_len; }
  std::int64_t batch_tokens() const { return run_.train.global_batch_size * run_.train.seq_len; }
  void take_memory();
  // Memory that is exchanged is known to all ranks, and as large on all.
  bool is_symmetric() const;
  std::int64_t largest_of_ranks(std::int64_t bytes) const;
  void rehearse_rest(bool evaluates);
  void read_data(std::int64_t step, std::uint64_t first_sample);  // of the whole step
  // The batch lives until the next one is loaded.
  model::Batch load_micro_batch(std::int64_t micro);
  std::vector<double> count_mtp_targets();
  // Runs `micro_step` for each micro-batch. Where bits may not depend on the number of ranks, what it adds to
  // `sums` is added by halves of the numbers, as ranks are; else one after the other.
  void for_each_micro_batch(std::span<const Tensor> sums, const std::function<void(std::int64_t)>& micro_step);
  void add_by_halves(std::int64_t first, std::int64_t last, std::size_t depth, std::span<const Tensor> sums,
                     const std::function<void(std::int64_t)>& micro_step);
  // Whether all micro-batches have the same targets: with a document mask, those of multi-token prediction
  // differ.
  bool steps_are_alike() const { return model_.n_mtp_depths() == 0 || !data_.begin_token; }
  void count_global_batch();
  void count_micro_batch(const model::Batch& batch);
  // The work of one micro-batch; replayed where steps are alike: then it may not depend on the step.
  struct Recorded {
    ops::Replay replay;
    std::array<std::int64_t, parallel::kTrafficKinds> sent_bytes{};  // to other ranks, of one time
  };
  void do_or_replay(Recorded& recorded, const std::function<void()>& work);
  void run_micro_batches(std::span<const double> mtp_dloss_K);
  void do_micro_batch(const model::Batch& batch, bool is_last, bool count_first,
                      std::span<const double> mtp_dloss_K);
  void forward_backward(const model::Batch& batch, bool count_first, bool sum_layers,
                        std::span<const double> mtp_dloss_K);
  void keep_results(std::int64_t micro);
  void sum_routing_over_ranks();
  void sum_gradient_sums_over_ranks();
  // What every micro-batch's passes add to: gradients, and what routers see of them; with the routing counts,
  // where they have not been counted before.
  std::vector<Tensor> sums_of_micro_batches(bool with_counts) const;
  double exchange_seconds();       // since it was last asked, of what the device was waited for
  bool needs_global_sums() const;  // a gradient does, before it can be made
  StepResult read_back(std::span<const double> mtp_share_K);
  std::string first_finding(const std::string& mine, const std::string& nothing) const;

  config::Run run_;
  const TrainingData& data_;
  parallel::Transport& transport_;
  parallel::Mesh mesh_;
  MicroBatches mine_;
  Context ctx_;
  model::Transformer model_;
  MemoryPlan memory_;
  GradientSums gradient_sums_;
  AdamW optimizer_;
  BatchBuffers buffers_;
  Recorded micro_step_, summing_step_, count_step_;
  double exchange_seconds_before_ = 0;
  std::vector<std::vector<std::size_t>> domain_MB_;
  std::vector<std::int32_t> window_;
  // What a step writes and the host reads when it is over. Each has a copy where the device writes it.
  enum Figure { kBalance, kZ, kRouter, kFigures };
  HostRecord<float> loss_MT_, mtp_loss_MKT_;
  AlignedBuffer micro_losses_;  // one micro-batch's: the same place in every one
  Tensor loss_T_, mtp_loss_KT_;
  HostRecord<std::int32_t> count_MLBE_, dropped_ML_;
  HostRecord<double> figure_M3_, grad_squares_1_;
  AlignedBuffer micro_figures_;
  Tensor figure_3_;
  std::vector<AlignedBuffer>
      halves_;  // with train.same_bits: sums of micro-batches that wait for their other half
};

}  // namespace switchyard::train
