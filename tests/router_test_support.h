// Shared by the tests of single routers: a layer's router with its parameters, activations and scratch, all of
// it poisoned before use.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ops/elementwise.h"
#include "router/router.h"
#include "router/routing_step.h"
#include "tensors.h"

namespace switchyard::router {

using Numbers = std::vector<double>;

// Defaults of a type for this shape, then what is set.
inline config::Router options_of(const std::string& type, const RouterShape& shape,
                                 const config::RouterOptions& own = {}) {
  config::Model model;
  config::set_layers(model, {true});
  model.num_experts = shape.n_experts;
  model.num_experts_per_tok = shape.n_slots;
  config::Router router = config::default_of(config::schema_of(type, router_schemas()), model);
  for (const auto& [key, value] : own.all()) router.own.set(key, value);
  return router;
}

struct RouterFixture {
  RouterFixture(const config::Router& options, const RouterShape& shape, std::int64_t n_seq,
                std::int64_t seq_len, DType dtype)
      : layer(options, shape, "gate.", store), n_seq_(n_seq), seq_len_(seq_len) {
    // Measured before there are parameters, as a run does it: a plan may not read them.
    Arena measure = Arena::measuring();
    plan(measure, shape.n_experts, dtype);
    store.allocate(dtype, true);
    arena.emplace(measure.peak(), "test");
    plan(*arena, shape.n_experts, dtype);
    layer.connect(routing);
    if (layer.router().n_statistics() > 0)
      layer.router().keep_statistics_in(statistics_S.emplace(Shape{layer.router().n_statistics()}, DType::f64));
    if (layer.observes_gradient())
      layer.router().keep_gradient_statistics_in(
          gradient_statistics_S.emplace(Shape{layer.router().n_gradient_statistics()}, DType::f64));
    arena->poison();
    ctx.scratch.set_poison(true);
  }
  RouterBatch batch(const Tensor& token_T, bool training = true) const {
    return {.token_T = token_T,
            .n_seq = n_seq_,
            .seq_len = seq_len_,
            .training = training,
            .rng_offset_2 = rng_offset_2};
  }
  void set_rng_offset(std::int64_t step, std::int64_t first_sequence) {
    fill(rng_offset_2, {static_cast<double>(step), static_cast<double>(first_sequence)});
  }
  Numbers statistics() const { return statistics_S ? test::values(*statistics_S) : Numbers{}; }
  double own_loss(const RoutingLossGradient& gradient) {
    const test::OwnedTensor loss_1 = test::doubles({0});
    layer.add_layer_loss(loss_1, gradient, ctx);
    return loss_1[0];
  }
  void backward(Tensor dx_TD, const RoutingGradient& gradient, Tensor x_TD, const RouterBatch& batch,
                const RoutingLossGradient& loss) {
    routing.loss = loss;
    layer.backward(dx_TD, gradient, x_TD, batch, ctx);
    if (!layer.observes_gradient()) return;
    ops::fill_zero(*gradient_statistics_S, ctx);
    layer.observe_gradient(dx_TD, batch, ctx);
  }
  Tensor row(const std::string& name) const {
    for (std::size_t i = 0; i < store.rows().size(); ++i)
      if (store.rows()[i].name == "gate." + name) return store.value(i);
    throw std::logic_error("no row " + name);
  }
  // The end of a step whose global batch is the last forward pass.
  void after_step() {
    const Tensor& count_BE = routing.count_BE;
    Numbers count_E(static_cast<std::size_t>(count_BE.dim(1)));
    for (std::int64_t b = 0; b < count_BE.rows(); ++b)
      for (std::size_t e = 0; e < count_E.size(); ++e) count_E[e] += count_BE.row<std::int32_t>(b)[e];
    layer.router().after_step(test::doubles(count_E), statistics_S ? statistics_S->view() : Tensor{}, ctx);
  }

  ParameterStore store;
  RoutedLayer layer;
  LayerRouting routing;
  std::optional<Arena> arena;
  std::optional<test::OwnedTensor> statistics_S, gradient_statistics_S;  // where the router has any
  test::OwnedTensor rng_offset_2 = test::ints({0, 0});
  Context ctx;

 private:
  void plan(Arena& in, std::int64_t n_experts, DType dtype) {
    routing = {in.take({n_seq_, n_experts}, DType::i32), in.take({n_seq_, n_experts}, DType::f64),
               in.take({n_seq_}, DType::f64), in.take({n_seq_}, DType::f64), in.take({1}, DType::i32)};
    layer.plan(in, n_seq_, seq_len_, dtype);
  }
  std::int64_t n_seq_, seq_len_;
};

}  // namespace switchyard::router
