// No learned router: every expert keeps a running mean of the hidden states that are sent to it, and takes what
// is most similar to it (arXiv 2605.12476; docs/router-mathematics.md, section 1).
#include "ops/cosine.h"
#include "ops/elementwise.h"
#include "ops/linear.h"
#include "ops/router_state.h"
#include "ops/routing.h"
#include "ops/slots.h"
#include "router/linear_gate.h"

namespace switchyard::router {

namespace {

class KMeans final : public Router {
 public:
  KMeans(const config::Router& options, const RouterShape& shape, const std::string& prefix,
         ParameterStore& store)
      : shape_(shape), jitter_(options.jitter), decay_(options.own.number("mean_decay")), store_(store) {
    store.begin_group();
    // As long as a normed hidden state, so that a step moves a mean by the share that mean_decay leaves.
    mean_ = store.add({.name = prefix + "means",
                       .shape = Shape{shape.n_experts, shape.hidden_size},
                       .init = Init::normal,
                       .init_std = 1,
                       .weight_decay = false,
                       .trained = false});
  }

  std::int64_t n_slots() const override { return shape_.n_slots; }

  void plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype) override {
    const std::int64_t n_tokens = n_seq * seq_len, E = shape_.n_experts, K = shape_.n_slots;
    cosine_TE_ = arena.take(Shape{n_tokens, E}, dtype);
    prob_TE_ = arena.take(Shape{n_tokens, E}, dtype);
    lse_T_ = arena.take(Shape{n_tokens}, dtype);
    x_norm_T_ = arena.take(Shape{n_tokens}, dtype);
    mean_norm_E_ = arena.take(Shape{E}, dtype);
    chosen_TK_ = arena.take(Shape{n_tokens, K}, dtype);
    decision_ = {arena.take(Shape{n_tokens, K}, DType::i32), arena.take(Shape{n_tokens, K}, dtype)};
  }

  RouterOutput forward(Tensor x_TD, const RouterBatch& batch, Context& ctx) override {
    ScratchScope scope(ctx.scratch);
    const Tensor mean_ED = store_.value(mean_);
    const Tensor score_TE = ctx.scratch.take(cosine_TE_.shape(), cosine_TE_.dtype());
    ops::row_norm_l2(x_norm_T_, x_TD, ctx);
    ops::row_norm_l2(mean_norm_E_, mean_ED, ctx);
    ops::linear_forward(cosine_TE_, x_TD, mean_ED, ops::Write::set, ctx);
    ops::cosine_forward(cosine_TE_, x_norm_T_, mean_norm_E_, ctx);
    ops::copy(score_TE, cosine_TE_, ctx);
    add_jitter(score_TE, jitter_, batch, shape_.layer, ctx);
    ops::softmax_forward(prob_TE_, lse_T_, score_TE, ctx);
    ops::top_k(decision_.expert_TK, chosen_TK_, score_TE, batch.token_T, ctx);
    ops::slot_softmax_forward(decision_.weight_TK, chosen_TK_, decision_.expert_TK, shape_.weight_scale, ctx);
    if (batch.training)
      ops::expert_sums(sums(statistics_S_), counts(statistics_S_), x_TD, decision_.expert_TK, ctx);
    return {decision_, prob_TE_};
  }

  // The means are not learned: the gradient goes to x alone.
  void backward(Tensor dx_TD, const RoutingGradient& gradient, Tensor x_TD, const RouterBatch& batch,
                const RoutingLossGradient& loss_gradient, Context& ctx) override {
    ScratchScope scope(ctx.scratch);
    const Tensor dscore_TE = ctx.scratch.take(prob_TE_.shape(), prob_TE_.dtype());
    const Tensor dprob_TE = ctx.scratch.take(prob_TE_.shape(), prob_TE_.dtype());
    ops::slot_softmax_backward(dscore_TE, gradient.dweight_TK, decision_.weight_TK, decision_.expert_TK,
                               shape_.weight_scale, ctx);
    ops::fill_zero(dprob_TE, ctx);
    ops::add_sequence_gradient(dprob_TE, loss_gradient.dprob_BE, prob_TE_, loss_gradient.dprob2, batch.token_T,
                               ctx);
    ops::softmax_backward(dprob_TE, dprob_TE, prob_TE_, ctx);
    ops::add(dscore_TE, dscore_TE, dprob_TE, ctx);
    ops::cosine_backward(dscore_TE, dx_TD, cosine_TE_, x_TD, x_norm_T_, mean_norm_E_, ctx);
    ops::linear_backward_input(dx_TD, dscore_TE, store_.value(mean_), ops::Write::add, ctx);
  }

  // Of each expert, the sum of its tokens, [E, D], and their number.
  std::int64_t n_statistics() const override { return shape_.n_experts * (shape_.hidden_size + 1); }

  void after_step(Tensor, Tensor statistics_S, Context& ctx) override {
    ops::follow_means(store_.value(mean_), sums(statistics_S), counts(statistics_S), decay_, ctx);
  }

  void visit_saved(const TensorVisitor& visit) const override { visit("router similarities", cosine_TE_); }

 private:
  Tensor sums(const Tensor& statistics_S) const {
    return statistics_S.slice(0, shape_.n_experts * shape_.hidden_size)
        .reshape(Shape{shape_.n_experts, shape_.hidden_size});
  }
  Tensor counts(const Tensor& statistics_S) const {
    return statistics_S.slice(shape_.n_experts * shape_.hidden_size, shape_.n_experts);
  }

  RouterShape shape_;
  double jitter_, decay_;
  ParameterStore& store_;
  std::size_t mean_;
  Tensor cosine_TE_, prob_TE_, lse_T_, x_norm_T_, mean_norm_E_, chosen_TK_;
  RoutingDecision decision_;
};

}  // namespace

RouterType kmeans_router() {
  return {.schema = {.type = "kmeans",
                     .balance_coef = 0,
                     .no_z_loss = "whose cosine similarities are bounded as they are",
                     .no_logit_norm = "which normalises no logits",
                     .weights_sum_to = "1",
                     .options = {{.key = "mean_decay",
                                  .fallback = 0.99,
                                  .range = {0, 1, false, true},
                                  .in_training_alone = true,
                                  .kept_each_step = true}}},
          .make = make_router_of<KMeans>};
}

}  // namespace switchyard::router
