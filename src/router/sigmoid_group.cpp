// The router of DeepSeek-V3: sigmoid scores (or others by score_function), a bias that only chooses, experts in
// groups (docs/router-mathematics.md, section 1).
#include "ops/sigmoid_group.h"
#include "ops/router_state.h"
#include "ops/routing.h"
#include "ops/slots.h"
#include "router/linear_gate.h"

namespace switchyard::router {

namespace {

class SigmoidGroup final : public Router {
 public:
  SigmoidGroup(const config::Router& options, const RouterShape& shape, const std::string& prefix,
               ParameterStore& store)
      : shape_(shape),
        bias_update_speed_(options.own.number("bias_update_speed")),
        store_(store),
        gate_(options, shape, prefix, store),
        scores_(score_function(options.own), shape.n_experts),
        bias_(add_expert_state(prefix + "e_score_correction_bias", shape.n_experts,
                               meaning_of(score_function(options.own)), store)) {}

  std::int64_t n_slots() const override { return shape_.n_slots; }

  void plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype) override {
    const std::int64_t n_tokens = n_seq * seq_len, K = shape_.n_slots;
    gate_.plan(arena, n_tokens, dtype);
    scores_.plan(arena, n_tokens, dtype);
    chosen_TK_ = arena.take(Shape{n_tokens, K}, dtype);
    decision_ = {arena.take(Shape{n_tokens, K}, DType::i32), arena.take(Shape{n_tokens, K}, dtype)};
  }

  RouterOutput forward(Tensor x_TD, const RouterBatch& batch, Context& ctx) override {
    ScratchScope scope(ctx.scratch);
    const Tensor score_TE = scores_.score_TE();
    const Tensor choice_TE = ctx.scratch.take(score_TE.shape(), score_TE.dtype());
    const Tensor chosen_choice_TK = ctx.scratch.take(chosen_TK_.shape(), chosen_TK_.dtype());
    gate_.forward(score_TE, x_TD, batch, ctx);
    scores_.forward(score_TE, ctx);
    ops::group_choice(choice_TE, score_TE, store_.value(bias_), shape_.n_group, shape_.topk_group, ctx);
    ops::top_k(decision_.expert_TK, chosen_choice_TK, choice_TE, batch.token_T, ctx);
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

  void after_step(Tensor count_E, Tensor, Context& ctx) override {
    if (bias_update_speed_ == 0) return;
    ops::balance_bias(store_.value(bias_), count_E, bias_update_speed_, ctx);
  }

  void visit_saved(const TensorVisitor& visit) const override { visit("router scores", scores_.score_TE()); }

 private:
  ops::SlotWeighting weighting() const {
    return {.normalise = shape_.normalise_weights, .scale = shape_.weight_scale, .eps = ops::kScoreSumEps};
  }

  RouterShape shape_;
  double bias_update_speed_;
  ParameterStore& store_;
  LinearGate gate_;
  Scores scores_;
  std::size_t bias_;
  Tensor chosen_TK_;
  RoutingDecision decision_;
};

}  // namespace

RouterType sigmoid_group_router() {
  return {.schema = {.type = "sigmoid_group",
                     // The bias balances; the loss only keeps single sequences from extremes.
                     .balance_coef = 1e-4,
                     .balance_scope = config::BalanceScope::sequence,
                     .options = {score_function_option(),
                                 {.key = "bias_update_speed",
                                  .fallback = 1e-3,
                                  .range = config::kShare,
                                  .in_training_alone = true}},
                     .check = [](const config::Router& router, const config::Model&,
                                 const auto& refuse) { check_score_function(router, refuse); }},
          .make = make_router_of<SigmoidGroup>};
}

}  // namespace switchyard::router
