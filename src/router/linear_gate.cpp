#include "router/linear_gate.h"

#include "ops/linear.h"
#include "ops/noise.h"

namespace switchyard::router {

LinearGate::LinearGate(const config::Router& options, const RouterShape& shape, const std::string& prefix,
                       ParameterStore& store)
    : jitter_(options.jitter), layer_(shape.layer), store_(store) {
  store.begin_group();
  weight_ = store.add({.name = prefix + "weight",
                       .shape = Shape{shape.n_experts, shape.hidden_size},
                       .init = Init::normal,
                       .init_std = shape.init_std});
}

void LinearGate::forward(Tensor logit_TE, Tensor x_TD, const RouterBatch& batch, Context& ctx) const {
  ops::linear_forward(logit_TE, x_TD, store_.value(weight_), ops::Write::set, ctx);
  add_jitter(logit_TE, jitter_, batch, layer_, ctx);
}

void LinearGate::backward(Tensor dx_TD, Tensor dlogit_TE, Tensor x_TD, Context& ctx) const {
  ops::linear_backward_weight(store_.grad(weight_), dlogit_TE, x_TD, ctx);
  ops::linear_backward_input(dx_TD, dlogit_TE, store_.value(weight_), ops::Write::add, ctx);
}

void add_noise(Tensor x_TN, RngPurpose purpose, double sigma, const RouterBatch& batch, std::int64_t layer,
               Context& ctx) {
  ops::add_normal(x_TN, Rng(batch.seed, purpose, 0), {batch.rng_offset_2, layer, batch.seq_len}, sigma, ctx);
}

void add_jitter(Tensor logit_TE, double jitter, const RouterBatch& batch, std::int64_t layer, Context& ctx) {
  if (!batch.training || jitter == 0) return;
  add_noise(logit_TE, RngPurpose::router_jitter, jitter, batch, layer, ctx);
}

std::size_t add_expert_state(const std::string& name, std::int64_t n_experts, ParameterStore& store) {
  store.begin_group();
  return store.add(
      {.name = name, .shape = Shape{n_experts}, .init = Init::zeros, .weight_decay = false, .trained = false});
}

}  // namespace switchyard::router
