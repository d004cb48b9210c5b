// The router of DeepSeek-V3: sigmoid scores (or others by score_function), a bias that only chooses, experts in
// groups (docs/router-mathematics.md, section 1).
#include "ops/sigmoid_group.h"
#include "ops/routing.h"
#include "ops/slots.h"
#include "router/choice_bias.h"
#include "router/linear_gate.h"
#include "router/simbal.h"

namespace switchyard::router {

namespace {

class SigmoidGroup final : public Router {
 public:
  SigmoidGroup(const config::Router& options, const RouterShape& shape, const std::string& prefix,
               ParameterStore& store)
      : shape_(shape),
        gate_(options, shape, prefix, store),
        scores_(score_function(options.own), shape.n_experts),
        bias_(options.own, shape, {shape.n_group, shape.topk_group}, meaning_of(score_function(options.own)),
              prefix, store) {}

  std::int64_t n_slots() const override { return shape_.n_slots; }

  void plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype) override {
    const std::int64_t n_tokens = n_seq * seq_len, K = shape_.n_slots;
    gate_.plan(arena, n_tokens, dtype);
    scores_.plan(arena, n_tokens, dtype);
    chosen_TK_ = arena.take(Shape{n_tokens, K}, dtype);
    decision_ = {arena.take(Shape{n_tokens, K}, DType::i32), arena.take(Shape{n_tokens, K}, dtype)};
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

RouterType sigmoid_group_router() {
  constexpr bool kMeanFree = false;  // as DeepSeek-V3 has it
  return {.schema = {.type = "sigmoid_group",
                     // The bias balances; the loss only keeps single sequences from extremes.
                     .balance_coef = 1e-4,
                     .balance_scope = config::BalanceScope::sequence,
                     .options = joined({score_function_option()},
                                       joined(choice_bias_options({"sign", "smebu", "phi"}, "sign", kMeanFree),
                                              {simbal_option()})),
                     .check =
                         [](const config::Router& router, const config::Model&, const auto& refuse) {
                           check_score_function(router, refuse);
                           check_choice_bias(router, kMeanFree, refuse);
                         }},
          .make = make_router_of<SigmoidGroup>};
}

}  // namespace switchyard::router
