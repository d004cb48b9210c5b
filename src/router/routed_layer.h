// A layer's router and what is the same for every router: the capacity of experts, and the sums that losses and
// balance figures are made of.   T tokens of B sequences, E experts, K slots a token
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "router/router.h"
#include "router/simbal.h"

namespace switchyard::router {

// One layer's part of a RoutingStep (routing_step.h): what its forward pass counts, each of it set, and what
// the losses send back. Padding (a negative token) counts in none of it.
struct LayerRouting {
  Tensor count_BE;     // i32: slots on each expert, dropped ones not counted
  Tensor prob_sum_BE;  // f64: sum of the router's probabilities
  Tensor prob2_sum_B;  // f64: sum of their squares
  Tensor lse2_sum_B;   // f64: sum of squared log-sum-exps of the logits; 0 without logits
  Tensor dropped_1;    // i32: slots that were dropped
  // f64: sum of the overlap of tokens' experts, which the experts set; defined in training with
  // orthogonality_coef.
  Tensor overlap_1{};
  RoutingLossGradient loss{};
};

class RoutedLayer {
 public:
  // Makes the configured router; its parameters are called `prefix` + their name.
  RoutedLayer(const config::Router& options, const RouterShape& shape, const std::string& prefix,
              ParameterStore& store);

  // Where forward() counts and backward() finds the losses' gradient. It stays there, apart from what plan()
  // reserves: layers may share that, and the counts of all layers are read after the last one has run.
  void connect(const LayerRouting& routing) { routing_ = &routing; }
  void plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype);

  // The router's decision, and what an expert cannot take dropped.
  RoutingDecision forward(Tensor x_TD, const RouterBatch& batch, Context& ctx);
  const RoutingDecision& decision() const { return decision_; }  // of the last forward pass

  // As Router::backward.
  void backward(Tensor dx_TD, const RoutingGradient& gradient, Tensor x_TD, const RouterBatch& batch,
                Context& ctx);

  // Of the last forward pass: what this micro-batch adds to losses that are this layer's alone, the router's
  // own and that of its gate, coefficients included, is added to loss_1 (f64).
  void add_layer_loss(Tensor loss_1, const RoutingLossGradient& gradient, Context& ctx) const;

  // What is there for Router::observe_gradient, in float32 or float64; after backward().
  bool observes_gradient() const { return router_->n_gradient_statistics() > 0; }
  void observe_gradient(Tensor dx_TD, const RouterBatch& batch, Context& ctx);

  // Where the experts count their overlap, and the gradient of the loss with respect to it.
  Tensor overlap_1() const { return routing_ ? routing_->overlap_1 : Tensor{}; }
  double doverlap() const { return routing_->loss.doverlap; }

  Router& router() { return *router_; }
  const Router& router() const { return *router_; }
  std::int64_t layer() const { return layer_; }  // of the model
  void visit_saved(const TensorVisitor& visit) const;

 private:
  std::int64_t n_experts_, layer_;
  std::optional<double> capacity_factor_;
  std::unique_ptr<Router> router_;
  std::optional<SimBal> simbal_;
  const LayerRouting* routing_ = nullptr;
  RoutingDecision decision_;
  Tensor kept_expert_TK_, kept_weight_TK_;  // with a capacity: the decision without the dropped slots
  Tensor no_lse_T_;                         // zeros, where the router has no logits
};

}  // namespace switchyard::router
