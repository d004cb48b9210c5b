// The router of Mixtral and Qwen3-MoE: softmax over all experts, the K largest are chosen
// (docs/router-mathematics.md, section 1).
#include "ops/routing.h"
#include "ops/slots.h"
#include "router/linear_gate.h"
#include "router/simbal.h"

namespace switchyard::router {

namespace {

class SoftmaxTopK final : public Router {
 public:
  SoftmaxTopK(const config::Router& options, const RouterShape& shape, const std::string& prefix,
              ParameterStore& store)
      : shape_(shape), gate_(options, shape, prefix, store) {}

  std::int64_t n_slots() const override { return shape_.n_slots; }

  void plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype) override {
    const std::int64_t n_tokens = n_seq * seq_len, E = shape_.n_experts, K = shape_.n_slots;
    gate_.plan(arena, n_tokens, dtype);
    prob_TE_ = arena.take(Shape{n_tokens, E}, dtype);
    lse_T_ = arena.take(Shape{n_tokens}, dtype);
    chosen_TK_ = arena.take(Shape{n_tokens, K}, dtype);
    decision_ = {arena.take(Shape{n_tokens, K}, DType::i32), arena.take(Shape{n_tokens, K}, dtype)};
  }

  RouterOutput forward(Tensor x_TD, const RouterBatch& batch, Context& ctx) override {
    gate_.forward(prob_TE_, x_TD, batch, ctx);
    ops::softmax_forward(prob_TE_, lse_T_, prob_TE_, ctx);
    ops::top_k(decision_.expert_TK, chosen_TK_, prob_TE_, batch.token_T, ctx);
    ops::slot_weights_forward(decision_.weight_TK, chosen_TK_, decision_.expert_TK, weighting(), ctx);
    return {decision_, prob_TE_, lse_T_};
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
    gate_.backward(dx_TD, dlogit_TE, x_TD, ctx);
  }

  void visit_saved(const TensorVisitor& visit) const override { visit("router probabilities", prob_TE_); }

 private:
  ops::SlotWeighting weighting() const {
    return {.normalise = shape_.normalise_weights, .scale = shape_.weight_scale};
  }

  RouterShape shape_;
  LinearGate gate_;
  Tensor prob_TE_, lse_T_, chosen_TK_;
  RoutingDecision decision_;
};

}  // namespace

RouterType softmax_topk_router() {
  return {.schema = {.type = "softmax_topk", .options = {simbal_option()}},
          .make = make_router_of<SoftmaxTopK>};
}

}  // namespace switchyard::router
