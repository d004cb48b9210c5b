// The whole model: embedding, blocks, final norm, classifier, and layers for multi-token prediction; forward
// and backward.
//   T tokens, D hidden size, V vocabulary, K depths of multi-token prediction
#pragma once

#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "config/config.h"
#include "core/context.h"
#include "core/parameters.h"
#include "model/batch.h"
#include "model/decoder_block.h"
#include "model/expert_ranks.h"
#include "model/mtp_layers.h"
#include "router/routing_step.h"

namespace switchyard::model {

// What a model is made of to compute in `type`: f32, but bf16 for bfloat16 on a CUDA device. Elsewhere the
// operands of products alone are rounded: Context::matmul.
DType dtype_of(config::ComputeType type, Device device);
MatmulType matmul_type_of(config::ComputeType type);

// Called in a backward pass.
struct BackwardCalls {
  // Before the gradients of a layer of the parameter store are made, and once they are.
  std::function<void(std::int64_t layer)> begin_layer, end_layer;
  // In each block when it is at its attention: its experts' ranks have exchanged what they had to.
  std::function<void()> before_attention;
};

class Transformer {
 public:
  // Describes all parameters; allocate() then makes them, not initialised. `training` reserves gradients and
  // moments as well, and lets plan() keep every layer's activations. f64 is for tests. Layers for multi-token
  // prediction have their rows in every model that has them; only one made for training computes with them.
  // bf16 is for a device: activations and weights are bf16; the parameters they are rounded from, gradients of
  // parameters, statistics, losses and all of the routers f32.
  Transformer(const config::Model& model, const config::Router& router, DType dtype, bool training);

  void allocate(Device device = Device::cpu) {
    parameters_.allocate(accumulation_dtype(dtype_), dtype_, training_, device);
  }
  std::int64_t parameter_bytes() const {  // which that takes
    return parameters_.bytes(accumulation_dtype(dtype_), dtype_, training_);
  }
  // Before measure_activations() and plan(), which by windows all ranks of the group call: the ranks of the
  // group hold the experts once, in equal parts of neighbours, as the store is told by place(), and tokens come
  // to them by `way`. From then on the group's ranks run the same passes in the same order, each on a batch of
  // its own, all of one shape. `room`, at least 1: for how many rows a rank's experts have memory, as a
  // multiple of an even load, T * K; infinity: for as many as there can be. With `overlap` exchanges go on
  // beside what does not need them, on a device (ops/device.h). `group` outlives this.
  void share_experts(const parallel::Group& group, parallel::TokenExchange::Way way,
                     double room = std::numeric_limits<double>::infinity(), bool overlap = false);
  // How many rows of a rank's experts there is memory for. After plan(); 0 where nobody shares experts.
  std::int64_t expert_room() const { return expert_room_; }
  // i32, where the run computes: the most rows that a layer has had for this rank's experts at once, since it
  // was zeroed, which is the caller's to do. Where it is more than expert_room() on any rank of the group, rows
  // were left out on that one: what has been computed since is of no use to any of them and has to be done
  // again, in rounds.
  Tensor largest_need_1() const { return expert_ranks_.largest_need_1; }
  // f64, where the run computes, not defined where tokens do not go by windows: bytes that have come and gone
  // by these, since it was zeroed, which is the caller's to do.
  Tensor window_bytes_1() const {
    return expert_ranks_.windows ? expert_ranks_.windows->sent_bytes_1() : Tensor{};
  }
  // n > 1: tokens go to the experts in n turns that use the same memory one after the other, and backward
  // passes make gates and ups again; results are the same to rounding, since gradients of experts add up by
  // turns. A turn needs about an n-th of the rows, and with as many turns as the group has ranks, room for an
  // even load takes any routing (where that many divide T). The same on all ranks of the group.
  void set_rounds(std::int64_t n);
  bool in_rounds() const { return expert_ranks_.n_rounds > 1; }

  // Refreshes the bf16 weights from the float32 parameters. Call after changing parameters; the optimizer does
  // it itself.
  void round_weights(Context& ctx);

  ParameterStore& parameters() { return parameters_; }
  const ParameterStore& parameters() const { return parameters_; }
  const config::Model& config() const { return config_; }

  DType dtype() const { return dtype_; }  // of activations
  // From the next plan() on, forward passes of a model made for evaluation leave what routers count in
  // training, where Batch::training asks for it: routing().begin(), add_micro_batch() and after_step() can then
  // be called.
  void observe_routing(bool observes) { observes_routing_ = observes; }
  // From the next plan() on, what each layer has computed is there after a forward pass, as in training:
  // visit_activations().
  void keep_activations(bool keeps) { keeps_activations_ = keeps; }
  // How many bytes plan() is going to reserve. Before it.
  std::int64_t measure_activations(std::int64_t n_seq, std::int64_t seq_len,
                                   config::Recompute recompute = config::Recompute::none);
  // What operators of a step's passes take of scratch space beside that, on a CPU, where products are of `type`
  // and those of layers in FP8 or not; after measure_activations() of the same sizes, before allocate(). At
  // first in pieces, which do not all fit what comes next: `grown` bytes; once settled, `most` at once
  // (core/arena.h).
  struct ScratchBytes {
    std::int64_t grown = 0, most = 0;
  };
  ScratchBytes measure_scratch(std::int64_t n_seq, std::int64_t seq_len, MatmulType type, bool e4m3_layers);
  // Reserves activations for batches of exactly n_seq sequences of seq_len tokens. What `recompute` says is not
  // kept in training but made again in the backward pass, the same bit for bit.
  void plan(std::int64_t n_seq, std::int64_t seq_len, Context& ctx,
            config::Recompute recompute = config::Recompute::none);
  // Reserves, in place of that, the caches of n_seq sequences of up to n_positions tokens and activations for
  // up to most_tokens of each at once: forward then takes batches of one to so many tokens of each sequence,
  // with Batch::n_past.
  struct Generation {
    std::int64_t n_seq, n_positions, most_tokens;
  };
  void plan_generation(const Generation& generation, Context& ctx);
  // How many bytes that is going to reserve: of caches and rope table, and of activations.
  struct GenerationBytes {
    std::int64_t lasting, activations;
  };
  GenerationBytes measure_generation(const Generation& generation);
  void poison_activations(
      Context& ctx);  // fills them with NaN; what forward and backward compute must not change

  // Runs the blocks. Afterwards routing().counts() speaks of this batch.
  void forward(const Batch& batch, Context& ctx);
  // Then runs the layers for multi-token prediction, if the model has them, on the same batch.
  void forward_mtp(const Batch& batch, Context& ctx);
  // loss_T (f32 in a bf16 model, else the model's type; set): cross entropy of each token of the last forward
  // pass, 0 where there is no target.
  void loss(Tensor loss_T, const Batch& batch, Context& ctx);
  void mtp_loss(Tensor loss_KT, Context& ctx);  // the same of forward_mtp, for each depth
  // loss(), and the gradients of  dloss * sum(loss_T) + auxiliary losses  added to the parameters'. The
  // gradient of the auxiliary losses is what routing() was told since the forward pass: add_losses().
  // With `mtp` (after forward_mtp) its losses are set and its gradients added too; without, the layers for
  // multi-token prediction take no part.
  void loss_and_backward(Tensor loss_T, const Batch& batch, double dloss, Context& ctx,
                         const MtpLoss* mtp = nullptr, const BackwardCalls& calls = {});
  // logits_NV (f32 in a bf16 model, else the model's type; set): of the last N tokens of the last forward pass,
  // all of them at once.
  void logits(Tensor logits_NV, Context& ctx) const;
  // The same of the last token of each of its B sequences.
  void logits_of_last(Tensor logits_BV, Context& ctx) const;

  // Depths of multi-token prediction that are computed: 0 in a model made for evaluation.
  std::int64_t n_mtp_depths() const { return mtp_ && training_ ? mtp_->n_depths() : 0; }

  // What the layers with a router count, and their losses: of the main layers, then of the depths that are
  // computed.
  router::RoutingStep& routing() { return *routing_; }
  const router::RoutingStep& routing() const { return *routing_; }
  std::span<const DecoderBlock> blocks() const { return blocks_; }  // of the main layers

  // All activations of the last forward pass in the order in which they were computed: (layer or -1, name,
  // tensor).
  using ActivationVisitor =
      std::function<void(std::int64_t layer, const std::string& name, const Tensor& tensor)>;
  void visit_activations(const ActivationVisitor& visit) const;

 private:
  void fill_rope_table(Context& ctx);
  void allocate_activations(const std::function<void(Arena&)>& lay_out_all, Context& ctx);
  void lay_out_positions(Arena& arena, std::int64_t n_positions);
  void lay_out(Arena& arena, std::int64_t n_seq, std::int64_t seq_len);
  std::int64_t lay_out_generation(Arena& arena, const Generation& generation);  // returns the lasting bytes
  bool keeps_activations() const { return training_ || keeps_activations_; }
  bool blocks_share_memory() const { return !keeps_activations() || recompute_ == config::Recompute::block; }
  void check_batch(const Batch& batch, const Context& ctx) const;
  // The same for a batch with a cache; and cuts the activations for its number of tokens.
  void prepare(const Batch& batch, const Context& ctx);

  config::Model config_;
  DType dtype_;
  bool training_;
  bool observes_routing_ = false, keeps_activations_ = false;
  config::Recompute recompute_ = config::Recompute::none;
  ParameterStore parameters_;
  ExpertRanks expert_ranks_;  // the blocks know where it is
  std::int64_t expert_room_ = 0;
  std::size_t embedding_, final_norm_, head_;  // rows; head_ is embedding_ where they are tied
  // Layers of parameters_, of which the blocks have one each; -1: of none.
  struct {
    std::int64_t embedding = -1, first_block = -1, head = -1;
  } layers_;
  std::vector<DecoderBlock> blocks_;
  std::optional<MtpLayers> mtp_;
  std::optional<router::RoutingStep> routing_;  // always there: made when the layers are

  std::unique_ptr<Arena> arena_;
  std::int64_t lasting_bytes_ = 0;  // of rope table and caches, at the arena's beginning; 0: no caches
  std::int64_t cached_sequences_ = 0;
  RopeTable rope_;
  // The residual stream: stream_[l] enters block l, the last one leaves the last block.
  std::vector<Tensor> stream_;       // [T, D] each
  Tensor final_TD_, final_rstd_T1_;  // the norm of the last one
};

}  // namespace switchyard::model
