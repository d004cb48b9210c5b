// As many experts as it takes: the shortest list of the most probable ones whose probabilities add up to p
// (arXiv 2403.07652; docs/router-mathematics.md, section 1).
#include "ops/complexity.h"
#include "ops/elementwise.h"
#include "ops/routing.h"
#include "ops/slots.h"
#include "router/linear_gate.h"
#include "router/simbal.h"

namespace switchyard::router {

namespace {

class TopP final : public Router {
 public:
  TopP(const config::Router& options, const RouterShape& shape, const std::string& prefix,
       ParameterStore& store)
      : shape_(shape),
        p_(options.own.number("p")),
        max_experts_(options.own.integer("max_experts")),
        entropy_coef_(options.own.number("entropy_coef")),
        renormalise_(options.own.boolean("renormalise")),
        gate_(options, shape, prefix, store) {}

  std::int64_t n_slots() const override { return max_experts_; }

  void plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype) override {
    const std::int64_t n_tokens = n_seq * seq_len, E = shape_.n_experts;
    const Shape slots{n_tokens, max_experts_};
    gate_.plan(arena, n_tokens, dtype);
    logit_TE_ = arena.take(Shape{n_tokens, E}, dtype);
    prob_TE_ = arena.take(Shape{n_tokens, E}, dtype);
    lse_T_ = arena.take(Shape{n_tokens}, dtype);
    entropy_T_ = arena.take(Shape{n_tokens}, dtype);
    chosen_TK_ = arena.take(slots, dtype);
    decision_ = {arena.take(slots, DType::i32), arena.take(slots, dtype)};
  }

  RouterOutput forward(Tensor x_TD, const RouterBatch& batch, Context& ctx) override {
    gate_.forward(logit_TE_, x_TD, batch, ctx);
    ops::softmax_forward(prob_TE_, lse_T_, logit_TE_, ctx);
    ops::top_k(decision_.expert_TK, chosen_TK_, prob_TE_, batch.token_T, ctx);
    ops::keep_prefix_sum(decision_.expert_TK, chosen_TK_, p_, ctx);
    ops::slot_weights_forward(decision_.weight_TK, chosen_TK_, decision_.expert_TK, weighting(), ctx);
    ops::softmax_entropy_forward(entropy_T_, logit_TE_, prob_TE_, lse_T_, ctx);
    if (batch.training) ops::sum_of_tokens(statistics_S_, entropy_T_, batch.token_T, ctx);
    return {decision_, prob_TE_, lse_T_};
  }

  std::int64_t n_statistics() const override { return 1; }  // the sum of entropies

  // Sure tokens are to have few experts.
  void add_router_loss(Tensor loss_1, const RoutingLossGradient& gradient, Context& ctx) const override {
    ops::accumulate(loss_1, statistics_S_, entropy_coef_ * gradient.token_share, ctx);
  }

  void backward(Tensor dx_TD, const RoutingGradient& gradient, Tensor x_TD, const RouterBatch& batch,
                const RoutingLossGradient& loss_gradient, Context& ctx) override {
    ScratchScope scope(ctx.scratch);
    const Tensor dlogit_TE = ctx.scratch.take(prob_TE_.shape(), prob_TE_.dtype());
    ops::slot_weights_backward(dlogit_TE, gradient.dweight_TK, decision_.weight_TK, chosen_TK_,
                               decision_.expert_TK, weighting(), ctx);
    ops::add_sequence_gradient(dlogit_TE, loss_gradient.dprob_BE, prob_TE_, loss_gradient.dprob2, batch.token_T,
                               ctx);
    ops::softmax_backward(dlogit_TE, dlogit_TE, prob_TE_, ctx);
    ops::z_loss_backward(dlogit_TE, prob_TE_, lse_T_, batch.token_T, loss_gradient.dlse2, ctx);
    ops::softmax_entropy_backward(dlogit_TE, entropy_T_, logit_TE_, prob_TE_, lse_T_, batch.token_T,
                                  entropy_coef_ * loss_gradient.token_share, ctx);
    gate_.backward(dx_TD, dlogit_TE, x_TD, ctx);
  }

  void visit_saved(const TensorVisitor& visit) const override { visit("router logits", logit_TE_); }

 private:
  ops::SlotWeighting weighting() const { return {.normalise = renormalise_, .scale = shape_.weight_scale}; }

  RouterShape shape_;
  double p_;
  std::int64_t max_experts_;
  double entropy_coef_;
  bool renormalise_;
  LinearGate gate_;
  Tensor logit_TE_, prob_TE_, lse_T_, entropy_T_, chosen_TK_;
  RoutingDecision decision_;
};

}  // namespace

RouterType top_p_router() {
  return {.schema = {.type = "top_p",
                     .weights_sum_to = "what router.renormalise says",
                     .options = {{.key = "p", .fallback = 0.4, .range = {0, 1, true}},
                                 config::max_experts_option(),
                                 {.key = "entropy_coef",
                                  .fallback = 1e-4,
                                  .range = config::kCoefficient,
                                  .in_training_alone = true},
                                 {.key = "renormalise", .fallback = false},
                                 simbal_option()},
                     .check = config::check_max_experts},
          .make = make_router_of<TopP>};
}

}  // namespace switchyard::router
