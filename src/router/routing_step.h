// What a step knows of routing, for all layers with a router: their counts and probabilities, their routers'
// statistics, the balance loss, z-loss and routers' own losses, and the gradients of these
// (docs/router-mathematics.md, section 3; formulas: ops/routing.h).
//   L layers with a router, B sequences, E experts, S statistics of all routers, G of their gradients
//
// The losses' strength does not depend on how a global batch is cut into micro-batches: every micro-batch
// contributes in proportion to its tokens, and the contributions of one global batch add up to one loss.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "config/config.h"
#include "core/routing.h"
#include "router/routed_layer.h"

namespace switchyard::router {

// LayerRouting's of all layers, side by side: of the last forward pass.
struct RoutingCounts {
  Tensor count_LBE, prob_sum_LBE, prob2_sum_LB, lse2_sum_LB, dropped_L;
};

// The whole batch of an optimizer step, over all micro-batches and ranks. Padding is not counted.
struct GlobalBatch {
  std::int64_t n_tokens;
  std::int64_t n_sequences;
};

// In training, a step is: begin(); for each micro-batch a forward pass, add_micro_batch(), add_losses() and the
// backward pass; after_step(). Where needs_global_sums(), all micro-batches of all ranks are added before the
// first add_losses(). Nothing is read back: a micro-batch may be recorded and replayed.
class RoutingStep {
 public:
  // The main layers, then those for multi-token prediction. They outlive this.
  RoutingStep(std::vector<RoutedLayer*> layers, const config::Router& options, const config::Model& model);

  // Reserves memory that no layer shares, for micro-batches of n_seq sequences, and connects the layers with
  // it. Without `training` there are counts alone. `layers_share_memory`: a layer's decision is gone when the
  // next layer runs.
  void plan(Arena& arena, std::int64_t n_seq, bool training, bool layers_share_memory = false);

  std::int64_t n_layers() const { return static_cast<std::int64_t>(layers_.size()); }
  std::int64_t n_main_layers() const { return n_main_layers_; }  // without multi-token prediction
  const RoutedLayer& layer(std::int64_t l) const { return *layers_[static_cast<std::size_t>(l)]; }
  const LayerRouting& routing(std::int64_t l) const { return routing_L_[static_cast<std::size_t>(l)]; }
  const RoutingCounts& counts() const { return counts_; }
  // What each router decided in the last forward pass. Only of layers that do not share memory.
  std::vector<RoutingDecision> decisions() const;

  // True: the gradient of a micro-batch needs the sums of the whole global batch.
  bool needs_global_sums() const;

  // Zeros the sums of the global batch.
  void begin(Context& ctx);
  // The same sums += what the last forward pass has counted.
  void add_micro_batch(Context& ctx);
  // f64 [L*E + S]: slots on each expert and the routers' statistics of the micro-batches added so far, to be
  // added up over ranks. Not defined without a router.
  Tensor global_sums() const { return global_sums_; }
  // f64 [G], zeroed by begin(): what the routers have seen of gradients, to which backward passes add; likewise
  // to be added up over ranks. Not defined where no router looks at gradients.
  Tensor gradient_sums() const { return gradient_sums_; }
  Tensor global_count_LE() const { return global_count_LE_; }  // a part of it

  // What the last forward pass, a micro-batch of this global batch, adds to the losses, coefficients included,
  // is added to loss_3 (f64): balance, z, all others (variance, orthogonality, the routers' own). Sets their
  // gradients, which the backward pass of the layers reads. tokens_B: i32, the tokens of each sequence that are
  // not padding.
  void add_losses(Tensor loss_3, Tensor tokens_B, const GlobalBatch& batch, Context& ctx);

  // What routers do beside their gradients, after each optimizer step: by the sums of the global batch.
  void after_step(Context& ctx);

  // The most that any of the routers wants to be fed (Router::settle_tokens).
  std::int64_t settle_tokens() const;
  // Likewise what routers do with the sums of a global batch from which nothing is learned.
  void settle(double keep, Context& ctx);

 private:
  std::vector<RoutedLayer*> layers_;
  std::int64_t n_main_layers_;
  bool layers_share_memory_ = false;
  std::int64_t n_experts_, n_statistics_ = 0, n_gradient_statistics_ = 0;
  BalanceLoss loss_;
  double orthogonality_coef_;
  RoutingCounts counts_;
  Tensor dprob_LBE_;     // f64
  Tensor statistics_S_;  // f64, of the last forward pass; not defined where there are none
  Tensor global_sums_;   // f64; its parts:
  Tensor global_count_LE_, global_statistics_S_;
  Tensor gradient_sums_;                 // f64 [G]
  Tensor overlap_L_;                     // f64; not defined without orthogonality_coef
  std::vector<LayerRouting> routing_L_;  // parts of the above
};

}  // namespace switchyard::router
