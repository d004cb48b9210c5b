// The whole model: embedding, blocks, final norm, classifier; forward and backward.
//   T tokens, D hidden size, V vocabulary, L layers with a router, B sequences, E experts
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "config/config.h"
#include "core/context.h"
#include "core/parameters.h"
#include "model/batch.h"
#include "model/decoder_block.h"

namespace switchyard::model {

class Transformer {
 public:
  // Describes all parameters; allocate() then makes them, not initialised. `training` reserves gradients and
  // moments as well, and lets plan() keep every layer's activations. f64 is for tests.
  Transformer(const config::Model& model, const config::Router& router, DType dtype, bool training);

  void allocate() { parameters_.allocate(dtype_, training_); }

  ParameterStore& parameters() { return parameters_; }
  const ParameterStore& parameters() const { return parameters_; }
  const config::Model& config() const { return config_; }

  // Reserves activations for batches of exactly n_seq sequences of seq_len tokens.
  void plan(std::int64_t n_seq, std::int64_t seq_len, Context& ctx);
  // Reserves, in place of that, the caches of one sequence of up to n_positions tokens and activations for up
  // to most_tokens of them at once: forward then takes batches of one to so many tokens, with Batch::cached.
  void plan_generation(std::int64_t n_positions, std::int64_t most_tokens, Context& ctx);
  std::int64_t activation_bytes() const { return arena_ ? arena_->peak() : 0; }
  void poison_activations(
      Context& ctx);  // fills them with NaN; what forward and backward compute must not change

  // Runs the blocks. Afterwards routing_sums() speaks of this batch.
  void forward(const Batch& batch, Context& ctx);
  // loss_T (compute type, set): cross entropy of each token of the last forward pass, 0 where there is no
  // target.
  void loss(Tensor loss_T, const Batch& batch, Context& ctx);
  // The same, and the gradients of  dloss * sum(loss_T) + auxiliary losses  added to the parameters'. The
  // gradient of the auxiliary losses is what the caller has put into loss_gradients() since the forward pass.
  void loss_and_backward(Tensor loss_T, const Batch& batch, double dloss, Context& ctx);
  // logits_TV (compute type, set): of the last forward pass, all of them at once.
  void logits(Tensor logits_TV, Context& ctx) const;
  void last_logits(Tensor logits_1V, Context& ctx) const;  // of its last token alone

  std::int64_t n_routers() const { return static_cast<std::int64_t>(routed_blocks_.size()); }
  // Which layer the l-th router sits in.
  std::int64_t layer_of_router(std::int64_t l) const { return routed_blocks_[static_cast<std::size_t>(l)]; }
  std::vector<router::RoutingSums> routing_sums() const;  // one a layer with a router
  // What each router decided in the last forward pass. Only of a model made for training: the layers of another
  // one share their memory.
  std::vector<router::RoutingDecision> routing_decisions() const;
  std::span<router::RoutingLossGradient> loss_gradients() { return loss_gradient_L_; }

  // After each optimizer step: what routers do beside their gradients. count_LE: slots on each expert in the
  // global batch.
  void after_step(std::span<const double> count_LE, Context& ctx);

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
  void check_batch(const Batch& batch) const;
  // The same for a batch with a cache; and cuts the activations for its number of tokens.
  void prepare(const Batch& batch);

  config::Model config_;
  DType dtype_;
  bool training_;
  ParameterStore parameters_;
  std::size_t embedding_, final_norm_, head_;  // rows; head_ is embedding_ where they are tied
  std::vector<DecoderBlock> blocks_;
  std::vector<std::int64_t> routed_blocks_;

  std::unique_ptr<Arena> arena_;
  std::int64_t lasting_bytes_ = 0;  // of rope table and caches, at the arena's beginning; 0: no caches
  RopeTable rope_;
  // The residual stream: stream_[l] enters block l, the last one leaves the last block.
  std::vector<Tensor> stream_;       // [T, D] each
  Tensor final_TD_, final_rstd_T1_;  // the norm of the last one
  std::vector<router::RoutingLossGradient> loss_gradient_L_;
};

}  // namespace switchyard::model
