#include "router/softmax_topk.h"

#include "ops/linear.h"
#include "ops/routing.h"
#include "ops/topk.h"

namespace switchyard::router {

namespace {

class SoftmaxTopK final : public Router {
 public:
  SoftmaxTopK(const RouterShape& shape, const std::string& prefix, ParameterStore& store)
      : shape_(shape), store_(store) {
    store.begin_group();
    weight_ = store.add({.name = prefix + "weight",
                         .shape = Shape{shape.n_experts, shape.hidden_size},
                         .init = Init::normal,
                         .init_std = shape.init_std});
  }

  void plan_sums(Arena& arena, std::int64_t n_seq) override {
    sums_ = {arena.take(Shape{n_seq, shape_.n_experts}, DType::i32),
             arena.take(Shape{n_seq, shape_.n_experts}, DType::f64), arena.take(Shape{n_seq}, DType::f64)};
  }

  void plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype) override {
    const std::int64_t n_tokens = n_seq * seq_len, E = shape_.n_experts, K = shape_.n_slots;
    prob_TE_ = arena.take(Shape{n_tokens, E}, dtype);
    lse_T_ = arena.take(Shape{n_tokens}, dtype);
    chosen_TK_ = arena.take(Shape{n_tokens, K}, dtype);
    decision_ = {arena.take(Shape{n_tokens, K}, DType::i32), arena.take(Shape{n_tokens, K}, dtype)};
  }

  RoutingDecision forward(Tensor x_TD, Tensor token_T, Context& ctx) override {
    const Float32Products products(ctx);
    ops::linear_forward(prob_TE_, x_TD, store_.value(weight_), ops::Write::set, ctx);
    ops::softmax_forward(prob_TE_, lse_T_, prob_TE_, ctx);
    ops::top_k(decision_.expert_TK, chosen_TK_, prob_TE_, token_T, ctx);
    ops::slot_weights_forward(decision_.weight_TK, chosen_TK_, decision_.expert_TK, weighting(), ctx);
    ops::routing_sums(sums_.count_BE, sums_.prob_sum_BE, sums_.lse2_sum_B, decision_.expert_TK, prob_TE_,
                      lse_T_, token_T, ctx);
    return decision_;
  }

  const RoutingDecision& decision() const override { return decision_; }
  const RoutingSums& sums() const override { return sums_; }

  void backward(Tensor dx_TD, Tensor dweight_TK, Tensor x_TD, Tensor token_T,
                const RoutingLossGradient& loss_gradient, Context& ctx) override {
    const Float32Products products(ctx);
    ScratchScope scope(ctx.scratch);
    const Tensor dlogit_TE = ctx.scratch.take(prob_TE_.shape(), prob_TE_.dtype());
    ops::slot_weights_backward(dlogit_TE, dweight_TK, decision_.weight_TK, chosen_TK_, decision_.expert_TK,
                               weighting(), ctx);
    ops::add_sequence_gradient(dlogit_TE, loss_gradient.dprob_BE, token_T, ctx);
    ops::softmax_backward(dlogit_TE, dlogit_TE, prob_TE_, ctx);
    ops::z_loss_backward(dlogit_TE, prob_TE_, lse_T_, token_T, loss_gradient.dlse2, ctx);
    ops::linear_backward_weight(store_.grad(weight_), dlogit_TE, x_TD, ctx);
    ops::linear_backward_input(dx_TD, dlogit_TE, store_.value(weight_), ops::Write::add, ctx);
  }

  void after_step(std::span<const double>, Context&) override {}  // all of it is learned by gradient

  void visit_saved(const TensorVisitor& visit) const override {
    visit("router probabilities", prob_TE_);
    visit("router weights", decision_.weight_TK);
  }

 private:
  SlotWeighting weighting() const {
    return {.normalise = shape_.normalise_weights, .scale = shape_.weight_scale};
  }

  RouterShape shape_;
  ParameterStore& store_;
  std::size_t weight_;
  Tensor prob_TE_, lse_T_, chosen_TK_;
  RoutingDecision decision_;
  RoutingSums sums_;
};

}  // namespace

std::unique_ptr<Router> make_softmax_topk(const config::Router&, const RouterShape& shape,
                                          const std::string& prefix, ParameterStore& store) {
  return std::make_unique<SoftmaxTopK>(shape, prefix, store);
}

}  // namespace switchyard::router
