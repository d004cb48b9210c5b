// The gate that most routers begin with: logits = x W^T, normalised over experts where logit_norm says so
// (Skywork-MoE, arXiv 2406.06563), and noise on them in training.
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
  // Reserves what normalised logits need in the backward pass; called by the plan() of every router with a
  // gate.
  void plan(Arena& arena, std::int64_t n_tokens, DType dtype);
  // logit_TE set.
  void forward(Tensor logit_TE, Tensor x_TD, const RouterBatch& batch, Context& ctx) const;
  // dx_TD and the weight's gradient are added to. dlogit_TE is overwritten where logits are normalised.
  void backward(Tensor dx_TD, Tensor dlogit_TE, Tensor x_TD, Context& ctx) const;

 private:
  double jitter_, logit_norm_;
  std::int64_t layer_, n_experts_;
  ParameterStore& store_;
  std::size_t weight_;
  Tensor unit_TE_, rstd_T_;  // where logits are normalised
};

// x_TN += noise of a kind and of standard deviation sigma; at the batch's offset.
void add_noise(Tensor x_TN, RngPurpose purpose, double sigma, const RouterBatch& batch, std::int64_t layer,
               Context& ctx);
// Noise of standard deviation `jitter` on logits or scores, in training only.
void add_jitter(Tensor logit_TE, double jitter, const RouterBatch& batch, std::int64_t layer, Context& ctx);

// A row of E numbers that chooses or measures and is not learned by gradient. `meaning`: Parameter's.
std::size_t add_expert_state(const std::string& name, std::int64_t n_experts, const std::string& meaning,
                             ParameterStore& store);

// Scores S of a linear router, a function of its logits, where a router lets the configuration choose.
//   T tokens, E experts

enum class ScoreFunction { sigmoid, softmax, sqrtsoftplus };

// The option "score_function" and what it says.
config::RouterOption score_function_option();
ScoreFunction score_function(const config::RouterOptions& options);
// Parameter's meaning of a number that is compared with such scores.
const char* meaning_of(ScoreFunction function);
// Refuses a z-loss and normalised logits where the score function has no normaliser.
void check_score_function(const config::Router& router, const config::RouterSchema::Refuse& refuse);

// Scores, and the probabilities that the balance loss is made of: softmax scores are probabilities, others
// are divided by their sum.
class Scores {
 public:
  Scores(ScoreFunction function, std::int64_t n_experts) : function_(function), n_experts_(n_experts) {}
  void plan(Arena& arena, std::int64_t n_tokens, DType dtype);
  // logit_TE may be score_TE().
  void forward(Tensor logit_TE, Context& ctx);
  // Set: the gradient of the logits. dscore_TE: through the weights; it may be dlogit_TE.
  void backward(Tensor dlogit_TE, Tensor dscore_TE, const RouterBatch& batch,
                const RoutingLossGradient& loss_gradient, Context& ctx) const;

  // The same without the balance loss.
  void backward_weights(Tensor dlogit_TE, Tensor dscore_TE, const RouterBatch& batch, double dlse2,
                        Context& ctx) const;

  Tensor score_TE() const { return score_TE_; }
  Tensor prob_TE() const { return function_ == ScoreFunction::softmax ? score_TE_ : prob_TE_; }
  Tensor lse_T() const { return lse_T_; }  // defined for softmax scores alone

 private:
  ScoreFunction function_;
  std::int64_t n_experts_;
  Tensor score_TE_, prob_TE_, lse_T_;
};

}  // namespace switchyard::router
