#include "ops/replay.h"

#include "cuda/graph.h"
#include "ops/operator.h"

namespace switchyard::ops {

void Replay::run(Context& ctx, const std::function<void()>& work) {
  if (graph_) {
    if constexpr (kHasCuda) graph_->launch(ctx);
    return;
  }
  if (ctx.device == Device::cpu || !warm_) {
    warm_ = true;
    return work();
  }
  if constexpr (kHasCuda) {
    auto graph = std::make_shared<cuda::Graph>();
    graph->begin(ctx);
    try {
      work();
    } catch (...) {
      graph->abandon(ctx);
      throw;
    }
    graph->end(ctx);
    graph_ = std::move(graph);
    graph_->launch(ctx);
  }
}

std::int64_t Replay::n_recorded() const { return graph_ ? graph_->n_nodes() : 0; }

}  // namespace switchyard::ops
