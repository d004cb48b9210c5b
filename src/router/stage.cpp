#include "router/stage.h"

#include "ops/capacity.h"
#include "ops/elementwise.h"
#include "ops/routing.h"
#include "router/registry.h"

namespace switchyard::router {

LayerSums LayerSums::plan(Arena& arena, std::int64_t n_layers, std::int64_t n_seq, std::int64_t n_experts) {
  if (n_layers == 0) return {};
  return {arena.take(Shape{n_layers, n_seq, n_experts}, DType::i32),
          arena.take(Shape{n_layers, n_seq, n_experts}, DType::f64),
          arena.take(Shape{n_layers, n_seq}, DType::f64), arena.take(Shape{n_layers}, DType::i32)};
}

RoutingSums LayerSums::of(std::int64_t l) const {
  const Shape shape_BE{count_LBE.dim(1), count_LBE.dim(2)};
  return {count_LBE.slice(l, 1).reshape(shape_BE), prob_sum_LBE.slice(l, 1).reshape(shape_BE),
          lse2_sum_LB.slice(l, 1).reshape(Shape{shape_BE[0]}), dropped_L.slice(l, 1)};
}

RouterStage::RouterStage(const config::Router& options, const RouterShape& shape, const std::string& prefix,
                         ParameterStore& store)
    : n_experts_(shape.n_experts),
      capacity_factor_(options.capacity_factor),
      router_(make_router(options, shape, prefix, store)) {}

void RouterStage::plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype) {
  const Shape slots{n_seq * seq_len, n_slots()};
  router_->plan(arena, n_seq, seq_len, dtype);
  no_lse_T_ = arena.take(Shape{n_seq * seq_len}, dtype);
  if (capacity_factor_) {
    kept_expert_TK_ = arena.take(slots, DType::i32);
    kept_weight_TK_ = arena.take(slots, dtype);
  }
}

RoutingDecision RouterStage::forward(Tensor x_TD, const RouterBatch& batch, Context& ctx) {
  const Float32Products products(ctx);
  const RouterOutput output = router_->forward(x_TD, batch, ctx);
  decision_ = output.decision;
  if (capacity_factor_) {
    ops::limit_capacity(kept_expert_TK_, kept_weight_TK_, sums_.dropped_1, decision_.expert_TK,
                        decision_.weight_TK, batch.token_T, n_experts_, *capacity_factor_, ctx);
    decision_.expert_TK = kept_expert_TK_;
    decision_.weight_TK = kept_weight_TK_;
  } else {
    ops::fill_zero(sums_.dropped_1, ctx);
  }
  if (!output.lse_T.defined()) ops::fill_zero(no_lse_T_, ctx);
  ops::routing_sums(sums_.count_BE, sums_.prob_sum_BE, sums_.lse2_sum_B, decision_.expert_TK, output.prob_TE,
                    output.lse_T.defined() ? output.lse_T : no_lse_T_, batch.token_T, ctx);
  return decision_;
}

void RouterStage::backward(Tensor dx_TD, const RoutingGradient& gradient, Tensor x_TD, const RouterBatch& batch,
                           const RoutingLossGradient& loss_gradient, Context& ctx) {
  const Float32Products products(ctx);
  router_->backward(dx_TD, gradient, x_TD, batch, loss_gradient, ctx);
}

void RouterStage::visit_saved(const TensorVisitor& visit) const {
  router_->visit_saved(visit);
  visit("router weights", decision_.weight_TK);
}

}  // namespace switchyard::router
