// The gate that most routers begin with: logits = x W^T, and noise on them in training.
//   T tokens, D hidden size, E experts
#pragma once

#include <string>

#include "core/rng.h"
#include "router/router.h"

namespace switchyard::router {

class LinearGate {
 public:
  // Adds "weight" [E, D].
  LinearGate(const config::Router& options, const RouterShape& shape, const std::string& prefix,
             ParameterStore& store);
  // logit_TE set.
  void forward(Tensor logit_TE, Tensor x_TD, const RouterBatch& batch, Context& ctx) const;
  // dx_TD and the weight's gradient are added to.
  void backward(Tensor dx_TD, Tensor dlogit_TE, Tensor x_TD, Context& ctx) const;

 private:
  double jitter_;
  std::int64_t layer_;
  ParameterStore& store_;
  std::size_t weight_;
};

// x_TN += noise of a kind and of standard deviation sigma; that of the batch's place.
void add_noise(Tensor x_TN, RngPurpose purpose, double sigma, const RouterBatch& batch, std::int64_t layer,
               Context& ctx);
// Noise of standard deviation `jitter` on logits or scores, in training only.
void add_jitter(Tensor logit_TE, double jitter, const RouterBatch& batch, std::int64_t layer, Context& ctx);

// A row of E numbers that chooses or measures and is not learned by gradient.
std::size_t add_expert_state(const std::string& name, std::int64_t n_experts, ParameterStore& store);

}  // namespace switchyard::router
