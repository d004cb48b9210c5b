// Quantile balancing on linear scores: a bias that is solved once a step (quantile_bias.h), or moved by another
// rule (choice_bias.h), chooses; the scores weigh (docs/router-mathematics.md, section 1).
#include "ops/routing.h"
#include "ops/sigmoid_group.h"
#include "router/choice_bias.h"
#include "router/linear_gate.h"
#include "router/simbal.h"

namespace switchyard::router {

namespace {

class Quantile final : public Router {
 public:
  Quantile(const config::Router& options, const RouterShape& shape, const std::string& prefix,
           ParameterStore& store)
      : shape_(shape),
        gate_(options, shape, prefix, store),
        scores_(score_function(options.own), shape.n_experts),
        bias_(options.own, shape, {}, meaning_of(score_function(options.own)), prefix, store) {}

  std::int64_t n_slots() const override { return shape_.n_slots; }

  void plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype) override {
    const Shape slots{n_seq * seq_len, shape_.n_slots};
    gate_.plan(arena, n_seq * seq_len, dtype);
    scores_.plan(arena, n_seq * seq_len, dtype);
    chosen_TK_ = arena.take(slots, dtype);
    decision_ = {arena.take(slots, DType::i32), arena.take(slots, dtype)};
  }

  RouterOutput forward(Tensor x_TD, const RouterBatch& batch, Context& ctx) override {
    const Tensor score_TE = scores_.score_TE();
    gate_.forward(score_TE, x_TD, batch, ctx);
    scores_.forward(score_TE, ctx);
    bias_.choose(decision_.expert_TK, statistics_S_, score_TE, batch, ctx);
    ops::gather_slots(chosen_TK_, score_TE, decision_.expert_TK, ctx);  // the bias chooses, it does not weigh
    ops::slot_weights_forward(decision_.weight_TK, chosen_TK_, decision_.expert_TK, weighting(), ctx);
    return {decision_, scores_.prob_TE(), scores_.lse_T()};
  }

  void backward(Tensor dx_TD, const RoutingGradient& gradient, Tensor x_TD, const RouterBatch& batch,
                const RoutingLossGradient& loss_gradient, Context& ctx) override {
    ScratchScope scope(ctx.scratch);
    const Tensor dscore_TE = ctx.scratch.take(scores_.score_TE().shape(), chosen_TK_.dtype());
    ops::slot_weights_backward(dscore_TE, gradient.dweight_TK, decision_.weight_TK, chosen_TK_,
                               decision_.expert_TK, weighting(), ctx);
    scores_.backward(dscore_TE, dscore_TE, batch, loss_gradient, ctx);
    gate_.backward(dx_TD, dscore_TE, x_TD, ctx);
  }

  std::int64_t n_statistics() const override { return bias_.n_statistics(); }
  void after_step(Tensor count_E, Tensor statistics_S, Context& ctx) override {
    bias_.after_step(count_E, statistics_S, ctx);
  }
  std::int64_t settle_tokens() const override { return bias_.settle_tokens(); }
  void settle(Tensor, Tensor statistics_S, double keep, Context& ctx) override {
    bias_.settle(statistics_S, keep, ctx);
  }
  void visit_saved(const TensorVisitor& visit) const override { visit("router scores", scores_.score_TE()); }

 private:
  ops::SlotWeighting weighting() const {
    return {.normalise = shape_.normalise_weights, .scale = shape_.weight_scale, .eps = ops::kScoreSumEps};
  }

  RouterShape shape_;
  LinearGate gate_;
  Scores scores_;
  ChoiceBias bias_;
  Tensor chosen_TK_;
  RoutingDecision decision_;
};

}  // namespace

RouterType quantile_router() {
  constexpr bool kMeanFree = true;  // no published run has a sign step here
  return {.schema = {.type = "quantile",
                     .balance_coef = 0,  // the bias balances
                     .options = joined(
                         {score_function_option(), simbal_option()},
                         choice_bias_options({"quantile", "sign", "smebu", "phi"}, "quantile", kMeanFree)),
                     .check =
                         [](const config::Router& router, const config::Model&, const auto& refuse) {
                           check_score_function(router, refuse);
                           check_choice_bias(router, kMeanFree, refuse);
                         }},
          .make = make_router_of<Quantile>};
}

}  // namespace switchyard::router
