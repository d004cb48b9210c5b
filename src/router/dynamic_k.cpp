// As many experts as a token is hard: an estimate of its complexity says how many of the largest logits count
// (complexity.h; docs/router-mathematics.md, section 1).
#include <fmt/core.h>

#include <cmath>

#include "ops/complexity.h"
#include "ops/cosine.h"
#include "ops/elementwise.h"
#include "ops/router_state.h"
#include "ops/routing.h"
#include "ops/slots.h"
#include "router/complexity.h"
#include "router/linear_gate.h"
#include "router/simbal.h"

namespace switchyard::router {

namespace {

// Where a share of the experts' FLOPs is to be saved: so that the mean of k, which is halfway between its ends
// since complexities are 1/2 in the mean, is that much below max_experts.
double least_for(double flops_target, std::int64_t max_experts) {
  return static_cast<double>(max_experts) * (1 - 2 * flops_target);
}

class DynamicK final : public Router {
 public:
  DynamicK(const config::Router& options, const RouterShape& shape, const std::string& prefix,
           ParameterStore& store)
      : shape_(shape),
        max_experts_(options.own.integer("max_experts")),
        least_(options.own.number("flops_target") > 0
                   ? least_for(options.own.number("flops_target"), max_experts_)
                   : static_cast<double>(options.own.integer("min_experts"))),
        threshold_(options.own.number("threshold")),
        decay_(options.own.number("statistics_decay")),
        estimator_(complexity_estimator(options.own.word("estimator"))),
        store_(store),
        gate_(options, shape, prefix, store) {
    if (estimator_.thresholded) return;
    const std::string meaning = fmt::format("of {}", estimator_.name);
    mean_ = add_expert_state(prefix + "complexity_mean", 1, meaning, store);
    variance_ = add_expert_state(prefix + "complexity_var", 1, meaning, store);
    if (!estimator_.by_token) return;
    SY_CHECK(shape.vocab_size > 0, "a router that keeps a number a token knows the vocabulary");
    by_token_ = add_expert_state(prefix + "complexity_by_token", shape.vocab_size, meaning, store);
  }

  std::int64_t n_slots() const override { return max_experts_; }
  bool needs_attention_entropy() const override { return estimator_.needs_attention_entropy; }

  void plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype) override {
    const std::int64_t n_tokens = n_seq * seq_len, E = shape_.n_experts;
    const Shape slots{n_tokens, max_experts_};
    gate_.plan(arena, n_tokens, dtype);
    prob_TE_ = arena.take(Shape{n_tokens, E}, dtype);
    lse_T_ = arena.take(Shape{n_tokens}, dtype);
    complexity_T_ = arena.take(Shape{n_tokens}, dtype);
    chosen_TK_ = arena.take(slots, dtype);
    decision_ = {arena.take(slots, DType::i32), arena.take(slots, dtype)};
  }

  RouterOutput forward(Tensor x_TD, const RouterBatch& batch, Context& ctx) override {
    ScratchScope scope(ctx.scratch);
    const Tensor logit_TE = ctx.scratch.take(prob_TE_.shape(), prob_TE_.dtype());
    const Tensor raw_T = ctx.scratch.take(complexity_T_.shape(), complexity_T_.dtype());
    const Tensor count_T = ctx.scratch.take(complexity_T_.shape(), DType::i32);
    gate_.forward(logit_TE, x_TD, batch, ctx);
    ops::softmax_forward(prob_TE_, lse_T_, logit_TE, ctx);
    ComplexityInput input{.x_TD = x_TD,
                          .logit_TE = logit_TE,
                          .prob_TE = prob_TE_,
                          .lse_T = lse_T_,
                          .attention_entropy_T = batch.attention_entropy_T,
                          .token_T = batch.token_T};
    if (estimator_.by_token) {
      input.value_V = store_.value(by_token_);
      input.mean_1 = store_.value(mean_);
      input.known_T = ctx.scratch.take(complexity_T_.shape(), DType::i32);
    }
    estimator_.raw(raw_T, input, ctx);
    if (estimator_.thresholded)
      ops::complexity_above(complexity_T_, raw_T, threshold_, ctx);
    else
      ops::complexity_calibrated(complexity_T_, raw_T, store_.value(mean_), store_.value(variance_), ctx);
    if (batch.training && n_statistics() > 0)
      ops::token_moments(statistics_S_, raw_T, estimator_.by_token ? input.known_T : batch.token_T, ctx);
    ops::slot_count(count_T, complexity_T_, least_, max_experts_, ctx);
    ops::top_k(decision_.expert_TK, chosen_TK_, logit_TE, batch.token_T, ctx);
    ops::keep_count(decision_.expert_TK, chosen_TK_, count_T, ctx);
    ops::slot_softmax_forward(decision_.weight_TK, chosen_TK_, decision_.expert_TK, shape_.weight_scale, ctx);
    return {decision_, prob_TE_, lse_T_};
  }

  // The complexity chooses, and has no gradient.
  void backward(Tensor dx_TD, const RoutingGradient& gradient, Tensor x_TD, const RouterBatch& batch,
                const RoutingLossGradient& loss_gradient, Context& ctx) override {
    ScratchScope scope(ctx.scratch);
    const Tensor dlogit_TE = ctx.scratch.take(prob_TE_.shape(), prob_TE_.dtype());
    const Tensor dprob_TE = ctx.scratch.take(prob_TE_.shape(), prob_TE_.dtype());
    ops::slot_softmax_backward(dlogit_TE, gradient.dweight_TK, decision_.weight_TK, decision_.expert_TK,
                               shape_.weight_scale, ctx);
    ops::fill_zero(dprob_TE, ctx);
    ops::add_sequence_gradient(dprob_TE, loss_gradient.dprob_BE, prob_TE_, loss_gradient.dprob2, batch.token_T,
                               ctx);
    ops::softmax_backward(dprob_TE, dprob_TE, prob_TE_, ctx);
    ops::add(dlogit_TE, dlogit_TE, dprob_TE, ctx);
    ops::z_loss_backward(dlogit_TE, prob_TE_, lse_T_, batch.token_T, loss_gradient.dlse2, ctx);
    gate_.backward(dx_TD, dlogit_TE, x_TD, ctx);
  }

  // Tokens, sum and sum of squares of the raw measure.
  std::int64_t n_statistics() const override { return estimator_.thresholded ? 0 : 3; }

  // Running mean and variance. A variance of 0 is the state before the first step, which takes what it finds.
  void after_step(Tensor, Tensor statistics_S, Context& ctx) override {
    if (n_statistics() > 0)
      ops::follow_moments(store_.value(mean_), store_.value(variance_), statistics_S, decay_, ctx);
    if (n_gradient_statistics() > 0)
      ops::follow_token_means(store_.value(by_token_), gradient_statistics_S_, decay_, ctx);
  }

  // Of each token of the vocabulary, the sum of the norms and how often it came.
  std::int64_t n_gradient_statistics() const override {
    return estimator_.by_token ? 2 * shape_.vocab_size : 0;
  }

  // The loss is a mean over the global batch, of which a token's gradient is a share.
  void observe_gradient(Tensor dx_TD, const RouterBatch& batch, double token_share, Context& ctx) override {
    ScratchScope scope(ctx.scratch);
    const Tensor norm_T = ctx.scratch.take(complexity_T_.shape(), complexity_T_.dtype());
    ops::row_norm_l2(norm_T, dx_TD, ctx);
    ops::add_by_token(gradient_statistics_S_, norm_T, batch.token_T, 1 / token_share, ctx);
  }

  void visit_saved(const TensorVisitor& visit) const override {
    visit("router probabilities", prob_TE_);
    visit("router complexity", complexity_T_);
  }

 private:
  RouterShape shape_;
  std::int64_t max_experts_;
  double least_, threshold_, decay_;
  const ComplexityEstimator& estimator_;
  ParameterStore& store_;
  LinearGate gate_;
  std::size_t mean_ = 0, variance_ = 0, by_token_ = 0;  // rows
  Tensor prob_TE_, lse_T_, complexity_T_, chosen_TK_;
  RoutingDecision decision_;
};

config::RouterOption estimator_option() {
  config::RouterOption option{.key = "estimator",
                              .fallback = std::string(complexity_estimators().front().name)};
  for (const ComplexityEstimator& estimator : complexity_estimators()) option.choices.push_back(estimator.name);
  return option;
}

void check(const config::Router& router, const config::Model& model,
           const config::RouterSchema::Refuse& refuse) {
  config::check_max_experts(router, model, refuse);
  const std::int64_t least = router.own.integer("min_experts"), most = router.own.integer("max_experts");
  if (least > most)
    refuse("min_experts", fmt::format("is {}, more than max_experts ({})", least, most), "max_experts");
  const double target = router.own.number("flops_target");
  if (target > 0 && least > 1)
    refuse("flops_target",
           fmt::format("is {}, from which min_experts follows, which is {}; remove one", target, least),
           "min_experts");
  // A little less than 1 is rounding: 4 * (1 - 2 * 0.375).
  constexpr double kRounding = 1e-9;
  if (target > 0 && least_for(target, most) < 1 - kRounding)
    refuse("flops_target",
           fmt::format("is {}, but with max_experts {} and at least one expert a token at most {:.4g} of the "
                       "experts' FLOPs can be saved; lower it or raise max_experts",
                       target, most, (1 - 1 / static_cast<double>(most)) / 2),
           "max_experts");
  const bool thresholded = complexity_estimator(router.own.word("estimator")).thresholded;
  const double threshold = router.own.number("threshold");
  if (thresholded && target > 0)
    refuse("flops_target",
           fmt::format("is {}, but how many tokens exceed a threshold is not known beforehand; use another "
                       "estimator or remove it",
                       target),
           "estimator");
  if (thresholded && threshold == 0)
    refuse("threshold",
           "is 0 or missing, but estimator is \"threshold\", which needs a length to compare with; give one",
           "estimator");
  if (!thresholded && threshold != 0)
    refuse("threshold",
           fmt::format("is {}, but estimator is \"{}\", which is compared with no constant; remove it",
                       threshold, router.own.word("estimator")),
           "estimator");
}

}  // namespace

RouterType dynamic_k_router() {
  return {.schema = {.type = "dynamic_k",
                     .weights_sum_to = "1",
                     .options = {{.key = "min_experts",
                                  .fallback = std::int64_t{1},
                                  .range = {1, static_cast<double>(config::kMaxSize)}},
                                 config::max_experts_option(),
                                 {.key = "flops_target", .fallback = 0.0, .range = {0, 0.5, false, true}},
                                 estimator_option(),
                                 {.key = "threshold", .fallback = 0.0, .range = {0, 1e9}},
                                 {.key = "statistics_decay",
                                  .fallback = 0.99,
                                  .range = {0, 1, false, true},
                                  .in_training_alone = true,
                                  .kept_each_step = true},
                                 simbal_option()},
                     .check = check},
          .make = make_router_of<DynamicK>};
}

}  // namespace switchyard::router
