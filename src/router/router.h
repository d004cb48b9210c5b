// The router stage: which experts a token goes to, and with what weight.
//   T tokens of B sequences, D hidden size, E experts, K slots a token
//
// A router is one class in one file of this room and one line of registry.cpp. It adds its parameters to the
// store when it is made, reserves in plan() what its forward pass keeps for its backward pass, and leaves
// permutation, experts, losses and balance figures to others: those work from what RoutingDecision and
// RoutingSums say.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>

#include "config/config.h"
#include "core/context.h"
#include "core/parameters.h"

namespace switchyard::router {

struct RouterShape {
  std::int64_t hidden_size;
  std::int64_t n_experts;
  std::int64_t n_slots;
  std::int64_t n_group = 1;     // experts in so many groups of neighbours (DeepSeek-V3)
  std::int64_t topk_group = 1;  // of which so many stay
  bool normalise_weights;       // Hugging Face's norm_topk_prob
  double weight_scale = 1.0;    // Hugging Face's routed_scaling_factor
  double init_std;
};

struct RoutingDecision {
  Tensor expert_TK;  // i32; -1: a free slot
  Tensor weight_TK;  // compute type; 0 in free slots
};

// What auxiliary losses and balance figures are made of. Padding (a negative token) counts in none of it.
struct RoutingSums {
  Tensor count_BE;     // i32: slots on each expert
  Tensor prob_sum_BE;  // f64: sum of the router's probabilities
  Tensor lse2_sum_B;   // f64: sum of squared log-sum-exps of the logits
};

// What the auxiliary losses send back.
struct RoutingLossGradient {
  Tensor dprob_BE;  // f64: with respect to the probabilities of each token of the sequence
  double dlse2;     // with respect to each token's squared log-sum-exp
};

using TensorVisitor = std::function<void(const std::string& name, const Tensor& tensor)>;

class Router {
 public:
  virtual ~Router() = default;

  // Reserves sums() apart from the rest: layers of a model that only evaluates share the memory that plan()
  // reserves, and every layer's sums are read after the last layer has run.
  virtual void plan_sums(Arena& arena, std::int64_t n_seq) = 0;
  // Reserves what is kept between forward and backward, for micro-batches of n_seq * seq_len tokens.
  virtual void plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype) = 0;

  // x_TD, the normed hidden state; token_T i32, negative: padding, which gets free slots only.
  virtual RoutingDecision forward(Tensor x_TD, Tensor token_T, Context& ctx) = 0;
  // Of the last forward pass.
  virtual const RoutingDecision& decision() const = 0;
  virtual const RoutingSums& sums() const = 0;

  // dx_TD is added to; the router's own parameter gradients are added to the store.
  virtual void backward(Tensor dx_TD, Tensor dweight_TK, Tensor x_TD, Tensor token_T,
                        const RoutingLossGradient& loss_gradient, Context& ctx) = 0;

  // After each optimizer step: what is no gradient. count_E: slots on each expert in the whole global batch.
  virtual void after_step(std::span<const double> count_E, Context& ctx) = 0;

  // The tensors of the last forward pass, in the order in which they were computed.
  virtual void visit_saved(const TensorVisitor& visit) const = 0;
};

// Makes the configured router; its parameters are called `prefix` + their name ("model.layers.0.mlp.gate.").
std::unique_ptr<Router> make_router(const config::Router& options, const RouterShape& shape,
                                    const std::string& prefix, ParameterStore& store);

}  // namespace switchyard::router
