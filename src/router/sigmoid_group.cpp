#include "router/sigmoid_group.h"

#include "ops/elementwise.h"
#include "ops/linear.h"
#include "ops/routing.h"
#include "ops/sigmoid_group.h"
#include "ops/topk.h"

namespace switchyard::router {

namespace {

class SigmoidGroup final : public Router {
 public:
  SigmoidGroup(const config::Router& options, const RouterShape& shape, const std::string& prefix,
               ParameterStore& store)
      : shape_(shape), bias_update_speed_(options.bias_update_speed), store_(store) {
    store.begin_group();
    weight_ = store.add({.name = prefix + "weight",
                         .shape = Shape{shape.n_experts, shape.hidden_size},
                         .init = Init::normal,
                         .init_std = shape.init_std});
    store.begin_group();
    bias_ = store.add({.name = prefix + "e_score_correction_bias",
                       .shape = Shape{shape.n_experts},
                       .init = Init::zeros,
                       .weight_decay = false,
                       .trained = false});
  }

  void plan_sums(Arena& arena, std::int64_t n_seq) override {
    sums_ = {arena.take(Shape{n_seq, shape_.n_experts}, DType::i32),
             arena.take(Shape{n_seq, shape_.n_experts}, DType::f64), arena.take(Shape{n_seq}, DType::f64)};
  }

  void plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype) override {
    const std::int64_t n_tokens = n_seq * seq_len, E = shape_.n_experts, K = shape_.n_slots;
    score_TE_ = arena.take(Shape{n_tokens, E}, dtype);
    prob_TE_ = arena.take(Shape{n_tokens, E}, dtype);
    chosen_TK_ = arena.take(Shape{n_tokens, K}, dtype);
    no_lse_T_ = arena.take(Shape{n_tokens}, dtype);
    decision_ = {arena.take(Shape{n_tokens, K}, DType::i32), arena.take(Shape{n_tokens, K}, dtype)};
  }

  RoutingDecision forward(Tensor x_TD, Tensor token_T, Context& ctx) override {
    const Float32Products products(ctx);
    ScratchScope scope(ctx.scratch);
    const Tensor choice_TE = ctx.scratch.take(score_TE_.shape(), score_TE_.dtype());
    const Tensor chosen_choice_TK = ctx.scratch.take(chosen_TK_.shape(), chosen_TK_.dtype());
    ops::linear_forward(score_TE_, x_TD, store_.value(weight_), ops::Write::set, ctx);
    ops::sigmoid_forward(score_TE_, score_TE_, ctx);
    ops::group_choice(choice_TE, score_TE_, store_.value(bias_), shape_.n_group, shape_.topk_group, ctx);
    ops::top_k(decision_.expert_TK, chosen_choice_TK, choice_TE, token_T, ctx);
    ops::gather_slots(chosen_TK_, score_TE_, decision_.expert_TK, ctx);  // the bias chooses, it does not weigh
    ops::slot_weights_forward(decision_.weight_TK, chosen_TK_, decision_.expert_TK, weighting(), ctx);
    ops::row_share_forward(prob_TE_, score_TE_, ctx);
    ops::fill_zero(no_lse_T_, ctx);
    ops::routing_sums(sums_.count_BE, sums_.prob_sum_BE, sums_.lse2_sum_B, decision_.expert_TK, prob_TE_,
                      no_lse_T_, token_T, ctx);
    return decision_;
  }

  const RoutingDecision& decision() const override { return decision_; }
  const RoutingSums& sums() const override { return sums_; }

  void backward(Tensor dx_TD, Tensor dweight_TK, Tensor x_TD, Tensor token_T,
                const RoutingLossGradient& loss_gradient, Context& ctx) override {
    const Float32Products products(ctx);
    ScratchScope scope(ctx.scratch);
    const Tensor dscore_TE = ctx.scratch.take(score_TE_.shape(), score_TE_.dtype());
    const Tensor dprob_TE = ctx.scratch.take(score_TE_.shape(), score_TE_.dtype());
    ops::slot_weights_backward(dscore_TE, dweight_TK, decision_.weight_TK, chosen_TK_, decision_.expert_TK,
                               weighting(), ctx);
    ops::fill_zero(dprob_TE, ctx);
    ops::add_sequence_gradient(dprob_TE, loss_gradient.dprob_BE, token_T, ctx);
    ops::row_share_backward(dscore_TE, dprob_TE, prob_TE_, score_TE_, ctx);
    ops::sigmoid_backward(dscore_TE, dscore_TE, score_TE_, ctx);
    ops::linear_backward_weight(store_.grad(weight_), dscore_TE, x_TD, ctx);
    ops::linear_backward_input(dx_TD, dscore_TE, store_.value(weight_), ops::Write::add, ctx);
  }

  void after_step(std::span<const double> count_E, Context& ctx) override {
    if (bias_update_speed_ == 0) return;
    ops::balance_bias(store_.value(bias_), count_E, bias_update_speed_, ctx);
  }

  void visit_saved(const TensorVisitor& visit) const override {
    visit("router scores", score_TE_);
    visit("router weights", decision_.weight_TK);
  }

 private:
  SlotWeighting weighting() const {
    return {.normalise = shape_.normalise_weights, .scale = shape_.weight_scale, .eps = 1e-20};
  }

  RouterShape shape_;
  double bias_update_speed_;
  ParameterStore& store_;
  std::size_t weight_, bias_;
  Tensor score_TE_, prob_TE_, chosen_TK_;
  Tensor no_lse_T_;  // zeros: sigmoid scores have no normaliser for a z-loss
  RoutingDecision decision_;
  RoutingSums sums_;
};

}  // namespace

std::unique_ptr<Router> make_sigmoid_group(const config::Router& options, const RouterShape& shape,
                                           const std::string& prefix, ParameterStore& store) {
  return std::make_unique<SigmoidGroup>(options, shape, prefix, store);
}

}  // namespace switchyard::router
