#include "router/linear_gate.h"

#include <fmt/core.h>

#include "ops/elementwise.h"
#include "ops/linear.h"
#include "ops/routing.h"
#include "ops/sigmoid_group.h"
#include "ops/slots.h"

namespace switchyard::router {

LinearGate::LinearGate(const config::Router& options, const RouterShape& shape, const std::string& prefix,
                       ParameterStore& store)
    : jitter_(options.jitter),
      logit_norm_(options.logit_norm),
      layer_(shape.layer),
      n_experts_(shape.n_experts),
      store_(store) {
  store.begin_group();
  weight_ = store.add({.name = prefix + "weight",
                       .shape = Shape{shape.n_experts, shape.hidden_size},
                       .init = Init::normal,
                       .init_std = shape.init_std});
}

void LinearGate::plan(Arena& arena, std::int64_t n_tokens, DType dtype) {
  if (logit_norm_ == 0) return;
  unit_TE_ = arena.take(Shape{n_tokens, n_experts_}, dtype);
  rstd_T_ = arena.take(Shape{n_tokens}, dtype);
}

void LinearGate::forward(Tensor logit_TE, Tensor x_TD, const RouterBatch& batch, Context& ctx) const {
  ops::linear_forward(logit_TE, x_TD, store_.value(weight_), ops::Write::set, ctx);
  if (logit_norm_ != 0) ops::normalise_logits_forward(logit_TE, unit_TE_, rstd_T_, logit_norm_, ctx);
  add_jitter(logit_TE, jitter_, batch, layer_, ctx);
}

void LinearGate::backward(Tensor dx_TD, Tensor dlogit_TE, Tensor x_TD, Context& ctx) const {
  if (logit_norm_ != 0) ops::normalise_logits_backward(dlogit_TE, unit_TE_, rstd_T_, logit_norm_, ctx);
  ops::linear_backward_weight(store_.grad(weight_), dlogit_TE, x_TD, ctx);
  ops::linear_backward_input(dx_TD, dlogit_TE, store_.value(weight_), ops::Write::add, ctx);
}

void add_noise(Tensor x_TN, RngPurpose purpose, double sigma, const RouterBatch& batch, std::int64_t layer,
               Context& ctx) {
  ops::add_normal(x_TN, Rng(batch.seed, purpose, 0), {batch.rng_offset_2, layer, batch.seq_len}, sigma, ctx);
}

void add_jitter(Tensor logit_TE, double jitter, const RouterBatch& batch, std::int64_t layer, Context& ctx) {
  if (!batch.training || jitter == 0) return;
  add_noise(logit_TE, RngPurpose::router_jitter, jitter, batch, layer, ctx);
}

std::size_t add_expert_state(const std::string& name, std::int64_t n_experts, const std::string& meaning,
                             ParameterStore& store) {
  store.begin_group();
  return store.add({.name = name,
                    .shape = Shape{n_experts},
                    .init = Init::zeros,
                    .weight_decay = false,
                    .trained = false,
                    .meaning = meaning});
}

config::RouterOption score_function_option() {
  return {.key = "score_function",
          .fallback = std::string("sigmoid"),
          .choices = {"sigmoid", "softmax", "sqrtsoftplus"}};
}

ScoreFunction score_function(const config::RouterOptions& options) {
  const std::string& word = options.word("score_function");
  return word == "softmax"        ? ScoreFunction::softmax
         : word == "sqrtsoftplus" ? ScoreFunction::sqrtsoftplus
                                  : ScoreFunction::sigmoid;
}

const char* meaning_of(ScoreFunction function) {
  return function == ScoreFunction::softmax        ? "of softmax scores"
         : function == ScoreFunction::sqrtsoftplus ? "of sqrtsoftplus scores"
                                                   : "of sigmoid scores";
}

void check_score_function(const config::Router& router, const config::RouterSchema::Refuse& refuse) {
  if (router.z_loss_coef > 0 && score_function(router.own) != ScoreFunction::softmax)
    refuse("z_loss_coef",
           fmt::format(
               "is {}, but score_function is \"{}\", which has no normaliser that it could bound; set it to 0",
               router.z_loss_coef, router.own.word("score_function")),
           "score_function");
  if (router.logit_norm > 0 && score_function(router.own) != ScoreFunction::softmax)
    refuse("logit_norm",
           fmt::format(
               "is {}, but score_function is \"{}\", and logits are normalised before a softmax alone; set "
               "it to 0",
               router.logit_norm, router.own.word("score_function")),
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
    case ScoreFunction::sqrtsoftplus:
      ops::sqrt_softplus_forward(score_TE_, logit_TE, ctx);
      ops::row_share_forward(prob_TE_, score_TE_, ctx);
      break;
  }
}

void Scores::backward(Tensor dlogit_TE, Tensor dscore_TE, const RouterBatch& batch,
                      const RoutingLossGradient& loss_gradient, Context& ctx) const {
  ScratchScope scope(ctx.scratch);
  if (function_ == ScoreFunction::softmax) {
    ops::add_sequence_gradient(dscore_TE, loss_gradient.dprob_BE, score_TE_, loss_gradient.dprob2,
                               batch.token_T, ctx);
  } else {
    const Tensor dprob_TE = ctx.scratch.take(score_TE_.shape(), score_TE_.dtype());
    ops::fill_zero(dprob_TE, ctx);
    ops::add_sequence_gradient(dprob_TE, loss_gradient.dprob_BE, prob_TE_, loss_gradient.dprob2, batch.token_T,
                               ctx);
    ops::row_share_backward(dscore_TE, dprob_TE, prob_TE_, score_TE_, ctx);
  }
  backward_weights(dlogit_TE, dscore_TE, batch, loss_gradient.dlse2, ctx);
}

void Scores::backward_weights(Tensor dlogit_TE, Tensor dscore_TE, const RouterBatch& batch, double dlse2,
                              Context& ctx) const {
  switch (function_) {
    case ScoreFunction::softmax:
      ops::softmax_backward(dlogit_TE, dscore_TE, score_TE_, ctx);
      return ops::z_loss_backward(dlogit_TE, score_TE_, lse_T_, batch.token_T, dlse2, ctx);
    case ScoreFunction::sigmoid:
      return ops::sigmoid_backward(dlogit_TE, dscore_TE, score_TE_, ctx);
    case ScoreFunction::sqrtsoftplus:
      return ops::sqrt_softplus_backward(dlogit_TE, dscore_TE, score_TE_, ctx);
  }
}

}  // namespace switchyard::router
