// Scores S of a linear router, sigmoid or softmax of its logits, where a router lets the configuration choose.
//   T tokens, E experts
#pragma once

#include "router/router.h"

namespace switchyard::router {

enum class ScoreFunction { sigmoid, softmax };

// The option "score_function" and what it says.
config::RouterOption score_function_option();
ScoreFunction score_function(const config::RouterOptions& options);
// Refuses a z-loss where the score function has no normaliser.
void check_score_function(const config::Router& router, const config::RouterSchema::Refuse& refuse);

// Scores, and the probabilities that the balance loss is made of: softmax scores are probabilities, sigmoid
// ones are divided by their sum.
class Scores {
 public:
  Scores(ScoreFunction function, std::int64_t n_experts) : function_(function), n_experts_(n_experts) {}
  void plan(Arena& arena, std::int64_t n_tokens, DType dtype);
  // logit_TE may be score_TE().
  void forward(Tensor logit_TE, Context& ctx);
  // Set: the gradient of the logits. dscore_TE: through the weights; it may be dlogit_TE.
  void backward(Tensor dlogit_TE, Tensor dscore_TE, const RouterBatch& batch,
                const RoutingLossGradient& loss_gradient, Context& ctx) const;

  Tensor score_TE() const { return score_TE_; }
  Tensor prob_TE() const { return function_ == ScoreFunction::softmax ? score_TE_ : prob_TE_; }
  Tensor lse_T() const { return lse_T_; }  // not defined for sigmoid scores

 private:
  ScoreFunction function_;
  std::int64_t n_experts_;
  Tensor score_TE_, prob_TE_, lse_T_;
};

}  // namespace switchyard::router
