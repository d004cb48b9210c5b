// The router stage of one layer: a router, and what is the same for every router: the capacity of experts, and
// the sums that losses and balance figures are made of.   T tokens of B sequences, E experts, K slots a token
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "router/router.h"

namespace switchyard::router {

// What auxiliary losses and balance figures are made of. Padding (a negative token) counts in none of it.
struct RoutingSums {
  Tensor count_BE;     // i32: slots on each expert, dropped ones not counted
  Tensor prob_sum_BE;  // f64: sum of the router's probabilities
  Tensor lse2_sum_B;   // f64: sum of squared log-sum-exps of the logits; 0 without logits
  Tensor dropped_1;    // i32: slots that were dropped
};
// The same of L layers, side by side.
struct LayerSums {
  Tensor count_LBE, prob_sum_LBE, lse2_sum_LB, dropped_L;

  static LayerSums plan(Arena& arena, std::int64_t n_layers, std::int64_t n_seq, std::int64_t n_experts);
  std::int64_t n_layers() const { return count_LBE.defined() ? count_LBE.dim(0) : 0; }
  RoutingSums of(std::int64_t l) const;
};

class RouterStage {
 public:
  // Makes the configured router; its parameters are called `prefix` + their name.
  RouterStage(const config::Router& options, const RouterShape& shape, const std::string& prefix,
              ParameterStore& store);

  // Where sums() are to be, apart from the rest: layers of a model that only evaluates share the memory that
  // plan() reserves, and every layer's sums are read after the last layer has run.
  void set_sums(const RoutingSums& sums) { sums_ = sums; }
  void plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype);

  // The router's decision, and what an expert cannot take dropped.
  RoutingDecision forward(Tensor x_TD, const RouterBatch& batch, Context& ctx);
  // Of the last forward pass.
  const RoutingDecision& decision() const { return decision_; }
  const RoutingSums& sums() const { return sums_; }
  std::int64_t n_statistics() const { return router_->n_statistics(); }
  void keep_statistics_in(Tensor statistics_S) { router_->keep_statistics_in(statistics_S); }
  Tensor statistics() const { return router_->statistics(); }
  void add_own_loss(Tensor loss_1, const RoutingLossGradient& gradient, Context& ctx) const {
    router_->add_own_loss(loss_1, gradient, ctx);
  }

  // As Router::backward.
  void backward(Tensor dx_TD, const RoutingGradient& gradient, Tensor x_TD, const RouterBatch& batch,
                const RoutingLossGradient& loss_gradient, Context& ctx);
  // As Router::after_step.
  void after_step(Tensor count_E, Tensor statistics_S, Context& ctx) {
    router_->after_step(count_E, statistics_S, ctx);
  }

  std::int64_t n_slots() const { return router_->n_slots(); }
  std::int64_t extra_multiply_adds() const { return router_->extra_multiply_adds(); }
  bool needs_attention_entropy() const { return router_->needs_attention_entropy(); }
  bool needs_statistics_first() const { return router_->needs_statistics_first(); }
  void visit_saved(const TensorVisitor& visit) const;

 private:
  std::int64_t n_experts_;
  std::optional<double> capacity_factor_;
  std::unique_ptr<Router> router_;
  RoutingDecision decision_;
  Tensor kept_expert_TK_, kept_weight_TK_;  // with a capacity: the decision without the dropped slots
  Tensor no_lse_T_;                         // zeros, where the router has no logits
  RoutingSums sums_;
};

}  // namespace switchyard::router
