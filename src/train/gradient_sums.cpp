#include "train/gradient_sums.h"

#include <algorithm>
#include <utility>

#include "ops/elementwise.h"

namespace switchyard::train {

GradientSums::GradientSums(ParameterStore& store, const parallel::Mesh& mesh, std::int64_t zero, bool beside)
    : store_(store), mesh_(mesh), to_all_(zero == 0), beside_(beside) {}

void GradientSums::sum_rest(Context& ctx) const {
  for (std::size_t i = 0; i < store_.regions().size(); ++i)
    for (const FlatRange& range : in_backward(true) ? store_.ranges_of_no_layer(i) : store_.ranges_in_grads(i))
      sum_range(i, range, ctx);
}

void GradientSums::sum_layer(std::int64_t layer, Context& ctx) const {
  const auto& ranges = store_.layer_ranges(layer);
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    if (ranges[i].count == 0) continue;
    sum_range(i, ranges[i], ctx);
    if (!store_.layers_share_gradients(i)) continue;
    const FlatRange own = overlap(store_.regions()[i].own_part(), ranges[i]);
    if (own.count == 0) continue;
    const Tensor sum = store_.sum_of_grads(own);
    ops::add(sum, sum, store_.grad(own), ctx);
  }
}

void GradientSums::sum_range(std::size_t region, const FlatRange& range, Context& ctx) const {
  const parallel::Group& group = mesh_.sharing(region);
  const std::vector<FlatRange> parts = store_.regions()[region].parts_in(range);
  const Tensor grad_P = store_.grad(range);
  group.sum_to_owners(grad_P, parts, parallel::Traffic::gradients, ctx);
  if (to_all_) group.all_gather_parts(grad_P, parts, parallel::Traffic::gradients, ctx);
}

model::BackwardCalls LayerSums::calls() {
  return {.begin_layer = [this](std::int64_t layer) { begin(layer); },
          .end_layer = [this](std::int64_t layer) { end(layer); },
          .before_attention = [this] { start_ended(); }};
}

// Where layers share a memory, that of this one is free once the sums of the one before in it are done.
void LayerSums::begin(std::int64_t layer) {
  const ParameterStore& store = sums_.store_;
  if (!store.layers_share_gradients()) return;
  const std::size_t window = store.window_of(layer);
  if (std::any_of(ended_.begin(), ended_.end(),
                  [&](std::int64_t ended) { return store.window_of(ended) == window; }))
    start_ended();
  if (under_way_W_[window]) under_way_W_[window]->join();
  if (const Tensor grads = store.layer_grads(layer); grads.numel() > 0) ops::fill_zero(grads, ctx_);
}

// Exchanges are done in the order in which they are started. Where ranks share experts, one of gradients that
// was started here would keep the next layer's tokens waiting: it is started when that layer has come to its
// attention, which has nothing to exchange.
void LayerSums::end(std::int64_t layer) {
  ended_.push_back(layer);
  if (!sums_.beside_ || sums_.mesh_.expert.size() == 1) start_ended();
}

void LayerSums::start_ended() {
  for (const std::int64_t layer : ended_) {
    if (!sums_.beside_) {
      sums_.sum_layer(layer, ctx_);
      continue;
    }
    auto beside = std::make_unique<ops::Beside>(ctx_);
    sums_.sum_layer(layer, ctx_);
    beside->end();
    under_way_W_[sums_.store_.window_of(layer)] = std::move(beside);
  }
  ended_.clear();
}

void LayerSums::join() {
  start_ended();
  for (const auto& sums : under_way_W_)
    if (sums) sums->join();
}

}  // namespace switchyard::train
