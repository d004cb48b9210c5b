// Shared by the tests of single routers: a router stage with its parameters, activations and scratch, all of it
// poisoned before use.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "router/registry.h"
#include "router/stage.h"
#include "tensors.h"

namespace switchyard::router {

using Numbers = std::vector<double>;

// Defaults of a type for this shape, then what is set.
inline config::Router options_of(const std::string& type, const RouterShape& shape,
                                 const config::RouterOptions& own = {}) {
  config::Model model;
  model.is_moe_layer = {true};
  model.num_experts = shape.n_experts;
  model.num_experts_per_tok = shape.n_slots;
  config::Router router = config::default_of(config::schema_of(type, router_schemas()), model);
  for (const auto& [key, value] : own.all()) router.own.set(key, value);
  return router;
}

struct StageFixture {
  StageFixture(const config::Router& options, const RouterShape& shape, std::int64_t n_seq,
               std::int64_t seq_len, DType dtype)
      : stage(options, shape, "gate.", store), n_seq_(n_seq), seq_len_(seq_len) {
    // Measured before there are parameters, as a run does it: a plan may not read them.
    Arena measure = Arena::measuring();
    LayerSums::plan(measure, 1, n_seq, shape.n_experts);
    stage.plan(measure, n_seq, seq_len, dtype);
    store.allocate(dtype, true);
    arena.emplace(measure.peak(), "test");
    stage.set_sums(LayerSums::plan(*arena, 1, n_seq, shape.n_experts).of(0));
    stage.plan(*arena, n_seq, seq_len, dtype);
    if (stage.n_statistics() > 0)
      stage.keep_statistics_in(statistics_S.emplace(Shape{stage.n_statistics()}, DType::f64));
    arena->poison();
    ctx.scratch.set_poison(true);
  }
  RouterBatch batch(const Tensor& token_T, bool training = true) const {
    return {.token_T = token_T, .n_seq = n_seq_, .seq_len = seq_len_, .training = training, .place_2 = place_2};
  }
  void set_place(std::int64_t step, std::int64_t first_sequence) {
    fill(place_2, {static_cast<double>(step), static_cast<double>(first_sequence)});
  }
  Numbers statistics() const { return statistics_S ? test::values(*statistics_S) : Numbers{}; }
  double own_loss(const RoutingLossGradient& gradient) {
    const test::OwnedTensor loss_1 = test::doubles({0});
    stage.add_own_loss(loss_1, gradient, ctx);
    return loss_1[0];
  }
  Tensor row(const std::string& name) const {
    for (std::size_t i = 0; i < store.rows().size(); ++i)
      if (store.rows()[i].name == "gate." + name) return store.value(i);
    throw std::logic_error("no row " + name);
  }
  // The end of a step whose global batch is the last forward pass.
  void after_step() {
    const Tensor& count_BE = stage.sums().count_BE;
    Numbers count_E(static_cast<std::size_t>(count_BE.dim(1)));
    for (std::int64_t b = 0; b < count_BE.rows(); ++b)
      for (std::size_t e = 0; e < count_E.size(); ++e) count_E[e] += count_BE.row<std::int32_t>(b)[e];
    stage.after_step(test::doubles(count_E), statistics_S ? statistics_S->view() : Tensor{}, ctx);
  }

  ParameterStore store;
  RouterStage stage;
  std::optional<Arena> arena;
  std::optional<test::OwnedTensor> statistics_S;  // where the router has any
  test::OwnedTensor place_2 = test::ints({0, 0});
  Context ctx;

 private:
  std::int64_t n_seq_, seq_len_;
};

}  // namespace switchyard::router
