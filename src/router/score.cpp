#include "router/score.h"

#include <fmt/core.h>

#include "ops/elementwise.h"
#include "ops/routing.h"
#include "ops/sigmoid_group.h"
#include "ops/topk.h"

namespace switchyard::router {

config::RouterOption score_function_option() {
  return {.key = "score_function", .fallback = std::string("sigmoid"), .choices = {"sigmoid", "softmax"}};
}

ScoreFunction score_function(const config::RouterOptions& options) {
  return options.word("score_function") == "softmax" ? ScoreFunction::softmax : ScoreFunction::sigmoid;
}

void check_score_function(const config::Router& router, const config::RouterSchema::Refuse& refuse) {
  if (router.z_loss_coef > 0 && score_function(router.own) == ScoreFunction::sigmoid)
    refuse("z_loss_coef",
           fmt::format(
               "is {}, but score_function is \"sigmoid\", which has no normaliser that it could bound; set "
               "it to 0",
               router.z_loss_coef),
           "score_function");
}

void Scores::plan(Arena& arena, std::int64_t n_tokens, DType dtype) {
  score_TE_ = arena.take(Shape{n_tokens, n_experts_}, dtype);
  if (function_ == ScoreFunction::softmax)
    lse_T_ = arena.take(Shape{n_tokens}, dtype);
  else
    prob_TE_ = arena.take(Shape{n_tokens, n_experts_}, dtype);
}

void Scores::forward(Tensor logit_TE, Context& ctx) {
  switch (function_) {
    case ScoreFunction::softmax:
      ops::softmax_forward(score_TE_, lse_T_, logit_TE, ctx);
      break;
    case ScoreFunction::sigmoid:
      ops::sigmoid_forward(score_TE_, logit_TE, ctx);
      ops::row_share_forward(prob_TE_, score_TE_, ctx);
      break;
  }
}

void Scores::backward(Tensor dlogit_TE, Tensor dscore_TE, const RouterBatch& batch,
                      const RoutingLossGradient& loss_gradient, Context& ctx) const {
  ScratchScope scope(ctx.scratch);
  switch (function_) {
    case ScoreFunction::softmax:
      ops::add_sequence_gradient(dscore_TE, loss_gradient.dprob_BE, batch.token_T, ctx);
      ops::softmax_backward(dlogit_TE, dscore_TE, score_TE_, ctx);
      ops::z_loss_backward(dlogit_TE, score_TE_, lse_T_, batch.token_T, loss_gradient.dlse2, ctx);
      break;
    case ScoreFunction::sigmoid: {
      const Tensor dprob_TE = ctx.scratch.take(score_TE_.shape(), score_TE_.dtype());
      ops::fill_zero(dprob_TE, ctx);
      ops::add_sequence_gradient(dprob_TE, loss_gradient.dprob_BE, batch.token_T, ctx);
      ops::row_share_backward(dscore_TE, dprob_TE, prob_TE_, score_TE_, ctx);
      ops::sigmoid_backward(dlogit_TE, dscore_TE, score_TE_, ctx);
      break;
    }
  }
}

}  // namespace switchyard::router
