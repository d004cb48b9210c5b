#include "router/routed_layer.h"

#include "ops/elementwise.h"
#include "ops/routing.h"
#include "ops/slots.h"
#include "router/router.h"

namespace switchyard::router {

RoutedLayer::RoutedLayer(const config::Router& options, const RouterShape& shape, const std::string& prefix,
                         ParameterStore& store)
    : n_experts_(shape.n_experts), layer_(shape.layer), capacity_factor_(options.capacity_factor) {
  const std::size_t first = store.rows().size();
  router_ = make_router(options, shape, prefix, store);
  store.mark_router(first);
  const std::string_view key = simbal_option().key;
  // A gate that does not choose keeps no tokens with an expert.
  if (!shape.hashed && options.own.has(key) && options.own.number(key) > 0)
    simbal_.emplace(options.own.number(key), prefix, store);
}

void RoutedLayer::plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype) {
  const Shape slots{n_seq * seq_len, router_->n_slots()};
  router_->plan(arena, n_seq, seq_len, dtype);
  no_lse_T_ = arena.take(Shape{n_seq * seq_len}, dtype);
  if (capacity_factor_) {
    kept_expert_TK_ = arena.take(slots, DType::i32);
    kept_weight_TK_ = arena.take(slots, dtype);
  }
}

RoutingDecision RoutedLayer::forward(Tensor x_TD, const RouterBatch& batch, Context& ctx) {
  SY_CHECK(routing_, "a layer with a router has no place for its counts");
  const LayerRouting& routing = *routing_;
  const Float32Products products(ctx);
  const RouterOutput output = router_->forward(x_TD, batch, ctx);
  decision_ = output.decision;
  if (capacity_factor_) {
    ops::limit_capacity(kept_expert_TK_, kept_weight_TK_, routing.dropped_1, decision_.expert_TK,
                        decision_.weight_TK, batch.token_T, n_experts_, *capacity_factor_, ctx);
    decision_.expert_TK = kept_expert_TK_;
    decision_.weight_TK = kept_weight_TK_;
  } else {
    ops::fill_zero(routing.dropped_1, ctx);
  }
  if (!output.lse_T.defined()) ops::fill_zero(no_lse_T_, ctx);
  ops::routing_sums(routing.count_BE, routing.prob_sum_BE, routing.prob2_sum_B, routing.lse2_sum_B,
                    decision_.expert_TK, output.prob_TE, output.lse_T.defined() ? output.lse_T : no_lse_T_,
                    batch.token_T, ctx);
  return decision_;
}

void RoutedLayer::backward(Tensor dx_TD, const RoutingGradient& gradient, Tensor x_TD, const RouterBatch& batch,
                           Context& ctx) {
  SY_CHECK(routing_ && routing_->loss.dprob_BE.defined(),
           "a layer with a router needs the gradient of its losses");
  const Float32Products products(ctx);
  router_->backward(dx_TD, gradient, x_TD, batch, routing_->loss, ctx);
  if (simbal_) simbal_->backward(routing_->loss, ctx);
}

void RoutedLayer::add_layer_loss(Tensor loss_1, const RoutingLossGradient& gradient, Context& ctx) const {
  router_->add_router_loss(loss_1, gradient, ctx);
  if (simbal_) simbal_->add_loss(loss_1, gradient, ctx);
}

void RoutedLayer::observe_gradient(Tensor dx_TD, const RouterBatch& batch, Context& ctx) {
  router_->observe_gradient(dx_TD, batch, routing_->loss.token_share, ctx);
}

void RoutedLayer::visit_saved(const TensorVisitor& visit) const {
  router_->visit_saved(visit);
  visit("router weights", decision_.weight_TK);
}

}  // namespace switchyard::router
