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
    store.allocate(dtype, true);
    Arena measure = Arena::measuring();
    LayerSums::plan(measure, 1, n_seq, shape.n_experts);
    stage.plan(measure, n_seq, seq_len, dtype);
    arena.emplace(measure.peak(), "test");
    stage.set_sums(LayerSums::plan(*arena, 1, n_seq, shape.n_experts).of(0));
    stage.plan(*arena, n_seq, seq_len, dtype);
    arena->poison();
    ctx.scratch.set_poison(true);
  }
  RouterBatch batch(const Tensor& token_T, bool training = true) const {
    return {.token_T = token_T, .n_seq = n_seq_, .seq_len = seq_len_, .training = training};
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
    const Numbers statistics(stage.statistics().begin(), stage.statistics().end());
    stage.after_step(count_E, statistics, ctx);
  }

  ParameterStore store;
  RouterStage stage;
  std::optional<Arena> arena;
  Context ctx;

 private:
  std::int64_t n_seq_, seq_len_;
};

}  // namespace switchyard::router
