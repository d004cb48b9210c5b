// Each expert takes the tokens whose score exceeds a threshold that it keeps: none, or up to max_experts a
// token. No token is compared with a later one (arXiv 2603.11535; docs/router-mathematics.md, section 1).
#include "ops/elementwise.h"
#include "ops/router_state.h"
#include "ops/routing.h"
#include "ops/slots.h"
#include "router/linear_gate.h"
#include "router/quantile_bias.h"
#include "router/simbal.h"

namespace switchyard::router {

namespace {

class ExpertThreshold final : public Router {
 public:
  ExpertThreshold(const config::Router& options, const RouterShape& shape, const std::string& prefix,
                  ParameterStore& store)
      : shape_(shape),
        max_experts_(options.own.integer("max_experts")),
        decay_(options.own.number("threshold_decay")),
        settle_tokens_(options.own.integer("settle_tokens")),
        store_(store),
        gate_(options, shape, prefix, store),
        scores_(score_function(options.own), shape.n_experts),
        threshold_(add_expert_state(prefix + "thresholds", shape.n_experts,
                                    meaning_of(score_function(options.own)), store)) {}

  std::int64_t n_slots() const override { return max_experts_; }

  void plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype) override {
    const Shape slots{n_seq * seq_len, max_experts_};
    gate_.plan(arena, n_seq * seq_len, dtype);
    scores_.plan(arena, n_seq * seq_len, dtype);
    chosen_TK_ = arena.take(slots, dtype);
    decision_ = {arena.take(slots, DType::i32), arena.take(slots, dtype)};
  }

  RouterOutput forward(Tensor x_TD, const RouterBatch& batch, Context& ctx) override {
    ScratchScope scope(ctx.scratch);
    const Tensor score_TE = scores_.score_TE();
    const Tensor choice_TE = ctx.scratch.take(score_TE.shape(), score_TE.dtype());
    gate_.forward(score_TE, x_TD, batch, ctx);
    scores_.forward(score_TE, ctx);
    ops::threshold_choice(choice_TE, score_TE, store_.value(threshold_), ctx);
    ops::top_k(decision_.expert_TK, chosen_TK_, choice_TE, batch.token_T, ctx);
    ops::keep_finite(decision_.expert_TK, chosen_TK_, ctx);
    ops::slot_weights_forward(decision_.weight_TK, chosen_TK_, decision_.expert_TK, weighting(), ctx);
    if (batch.training)
      ops::score_gap_histogram(bins(statistics_S_), score_TE, store_.value(threshold_), batch.token_T, ctx);
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

  std::int64_t n_statistics() const override { return shape_.n_experts * 2 * ops::kGapBins; }

  // Towards the threshold that would have given each expert its even share of the global batch.
  void after_step(Tensor count_E, Tensor statistics_S, Context& ctx) override {
    settle(count_E, statistics_S, decay_, ctx);
  }
  std::int64_t settle_tokens() const override { return settle_tokens_; }
  void settle(Tensor, Tensor statistics_S, double keep, Context& ctx) override {
    const double share = static_cast<double>(shape_.n_slots) / static_cast<double>(shape_.n_experts);
    ops::follow_quantiles(store_.value(threshold_), bins(statistics_S), 1 - share, keep, ctx);
  }

  void visit_saved(const TensorVisitor& visit) const override { visit("router scores", scores_.score_TE()); }

 private:
  Tensor bins(const Tensor& statistics_S) const {
    return statistics_S.reshape(Shape{shape_.n_experts, 2 * ops::kGapBins});
  }
  ops::SlotWeighting weighting() const { return {.normalise = false, .scale = shape_.weight_scale}; }

  RouterShape shape_;
  std::int64_t max_experts_;
  double decay_;
  std::int64_t settle_tokens_;
  ParameterStore& store_;
  LinearGate gate_;
  Scores scores_;
  std::size_t threshold_;
  Tensor chosen_TK_;
  RoutingDecision decision_;
};

}  // namespace

RouterType expert_threshold_router() {
  return {.schema = {.type = "expert_threshold",
                     .balance_coef = 0,  // the thresholds balance
                     .weights_sum_to = "what the scores sum to",
                     .options = {score_function_option(),
                                 {.key = "threshold_decay",
                                  .fallback = 0.99,
                                  .range = {0, 1, false, true},
                                  .in_training_alone = true,
                                  .kept_each_step = true},
                                 settle_tokens_option(),
                                 config::max_experts_option(),
                                 simbal_option()},
                     .check =
                         [](const config::Router& router, const config::Model& model, const auto& refuse) {
                           config::check_max_experts(router, model, refuse);
                           check_score_function(router, refuse);
                         }},
          .make = make_router_of<ExpertThreshold>};
}

}  // namespace switchyard::router
