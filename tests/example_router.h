// A router to learn from (docs/routers.md): sigmoid scores, the K largest weigh as they are, times its one
// option.
#pragma once
#include "ops/routing.h"
#include "ops/slots.h"
#include "router/linear_gate.h"

namespace switchyard::router {

class Example final : public Router {
 public:
  Example(const config::Router& options, const RouterShape& shape, const std::string& prefix,
          ParameterStore& store)
      : shape_(shape),
        weighting_{.normalise = false, .scale = options.own.number("sharpness")},
        gate_(options, shape, prefix, store) {}
  std::int64_t n_slots() const override { return shape_.n_slots; }
  void plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype) override {
    const Shape slots{n_seq * seq_len, shape_.n_slots};
    gate_.plan(arena, n_seq * seq_len, dtype);
    prob_TE_ = arena.take(Shape{n_seq * seq_len, shape_.n_experts}, dtype);
    lse_T_ = arena.take(Shape{n_seq * seq_len}, dtype);
    chosen_TK_ = arena.take(slots, dtype);
    decision_ = {arena.take(slots, DType::i32), arena.take(slots, dtype)};
  }
  RouterOutput forward(Tensor x_TD, const RouterBatch& batch, Context& ctx) override {
    gate_.forward(prob_TE_, x_TD, batch, ctx);  // x W^T, normalised where the run says so, and jitter
    ops::softmax_forward(prob_TE_, lse_T_, prob_TE_, ctx);
    ops::top_k(decision_.expert_TK, chosen_TK_, prob_TE_, batch.token_T, ctx);
    ops::slot_weights_forward(decision_.weight_TK, chosen_TK_, decision_.expert_TK, weighting_, ctx);
    return {decision_, prob_TE_, lse_T_};
  }
  void backward(Tensor dx_TD, const RoutingGradient& gradient, Tensor x_TD, const RouterBatch& batch,
                const RoutingLossGradient& loss_gradient, Context& ctx) override {
    ScratchScope scope(ctx.scratch);
    const Tensor dlogit_TE = ctx.scratch.take(prob_TE_.shape(), prob_TE_.dtype());
    ops::slot_weights_backward(dlogit_TE, gradient.dweight_TK, decision_.weight_TK, chosen_TK_,
                               decision_.expert_TK, weighting_, ctx);
    ops::add_sequence_gradient(dlogit_TE, loss_gradient.dprob_BE, prob_TE_, loss_gradient.dprob2, batch.token_T,
                               ctx);
    ops::softmax_backward(dlogit_TE, dlogit_TE, prob_TE_, ctx);
    ops::z_loss_backward(dlogit_TE, prob_TE_, lse_T_, batch.token_T, loss_gradient.dlse2, ctx);
    gate_.backward(dx_TD, dlogit_TE, x_TD, ctx);
  }
  void visit_saved(const TensorVisitor& visit) const override { visit("router probabilities", prob_TE_); }

 private:
  RouterShape shape_;
  ops::SlotWeighting weighting_;
  LinearGate gate_;
  Tensor prob_TE_, lse_T_, chosen_TK_;
  RoutingDecision decision_;
};

inline RouterType example_router() {
  return {.schema = {.type = "example",
                     .options = {{.key = "sharpness", .fallback = 1.0, .range = {0, 100, true}}}},
          .make = make_router_of<Example>};
}

}  // namespace switchyard::router
