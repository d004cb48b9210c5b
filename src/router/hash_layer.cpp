// A layer whose experts are chosen by a table of tokens (hash routing: arXiv 2106.04426; DeepSeek-V4's first
// layers), under any router: config::Router::num_hash_layers (docs/router-mathematics.md, section 1). A gate
// that is learned weighs.   T tokens, E experts, K slots a token, V the vocabulary
#include "router/hash_layer.h"

#include "ops/elementwise.h"
#include "ops/routing.h"
#include "ops/sigmoid_group.h"
#include "ops/slots.h"
#include "router/linear_gate.h"

namespace switchyard::router {

namespace {

ScoreFunction scores_of(const config::Router& options, const RouterShape& shape) {
  if (options.own.has("score_function")) return score_function(options.own);
  return shape.sigmoid_scores ? ScoreFunction::sigmoid : ScoreFunction::softmax;
}

class HashLayer final : public Router {
 public:
  HashLayer(const config::Router& options, const RouterShape& shape, const std::string& prefix,
            ParameterStore& store)
      : shape_(shape),
        store_(store),
        gate_(options, shape, prefix, store),
        scores_(scores_of(options, shape), shape.n_experts) {
    SY_CHECK(shape.vocab_size > 0, "a table of tokens knows the vocabulary");
    store.begin_group();
    // [V * K]: no matrix that multiplies anything.
    table_ = store.add({.name = prefix + "tid2eid",
                        .shape = Shape{shape.vocab_size * shape.n_slots},
                        .init = Init::dealt,
                        .weight_decay = false,
                        .trained = false,
                        .dealt_experts = shape.n_experts,
                        .dealt_slots = shape.n_slots});
  }

  std::int64_t n_slots() const override { return shape_.n_slots; }

  void plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype) override {
    const std::int64_t n_tokens = n_seq * seq_len;
    const Shape slots{n_tokens, shape_.n_slots};
    gate_.plan(arena, n_tokens, dtype);
    scores_.plan(arena, n_tokens, dtype);
    no_prob_TE_ = arena.take(Shape{n_tokens, shape_.n_experts}, dtype);
    chosen_TK_ = arena.take(slots, dtype);
    decision_ = {arena.take(slots, DType::i32), arena.take(slots, dtype)};
  }

  // No probabilities: what the balance loss would move does not choose.
  RouterOutput forward(Tensor x_TD, const RouterBatch& batch, Context& ctx) override {
    const Tensor score_TE = scores_.score_TE();
    gate_.forward(score_TE, x_TD, batch, ctx);
    scores_.forward(score_TE, ctx);
    ops::experts_of_tokens(decision_.expert_TK, store_.value(table_), batch.token_T, ctx);
    ops::gather_slots(chosen_TK_, score_TE, decision_.expert_TK, ctx);
    ops::slot_weights_forward(decision_.weight_TK, chosen_TK_, decision_.expert_TK, weighting(), ctx);
    ops::fill_zero(no_prob_TE_, ctx);
    return {decision_, no_prob_TE_, scores_.lse_T()};
  }

  void backward(Tensor dx_TD, const RoutingGradient& gradient, Tensor x_TD, const RouterBatch& batch,
                const RoutingLossGradient& loss_gradient, Context& ctx) override {
    ScratchScope scope(ctx.scratch);
    const Tensor dscore_TE = ctx.scratch.take(scores_.score_TE().shape(), chosen_TK_.dtype());
    ops::slot_weights_backward(dscore_TE, gradient.dweight_TK, decision_.weight_TK, chosen_TK_,
                               decision_.expert_TK, weighting(), ctx);
    scores_.backward_weights(dscore_TE, dscore_TE, batch, loss_gradient.dlse2, ctx);
    gate_.backward(dx_TD, dscore_TE, x_TD, ctx);
  }

  void visit_saved(const TensorVisitor& visit) const override { visit("router scores", scores_.score_TE()); }

 private:
  ops::SlotWeighting weighting() const {
    return {.normalise = shape_.normalise_weights, .scale = shape_.weight_scale, .eps = ops::kScoreSumEps};
  }

  RouterShape shape_;
  ParameterStore& store_;
  LinearGate gate_;
  Scores scores_;
  std::size_t table_;
  Tensor no_prob_TE_, chosen_TK_;
  RoutingDecision decision_;
};

}  // namespace

std::unique_ptr<Router> make_hash_layer(const config::Router& options, const RouterShape& shape,
                                        const std::string& prefix, ParameterStore& store) {
  return std::make_unique<HashLayer>(options, shape, prefix, store);
}

}  // namespace switchyard::router
