#include "router/routing_step.h"

#include <algorithm>

#include "ops/elementwise.h"
#include "ops/routing.h"

namespace switchyard::router {

RoutingStep::RoutingStep(std::vector<RoutedLayer*> layers, const config::Router& options,
                         const config::Model& model)
    : layers_(std::move(layers)),
      n_main_layers_(
          std::count_if(layers_.begin(), layers_.end(),
                        [&](const RoutedLayer* each) { return each->layer() < model.num_hidden_layers; })),
      n_experts_(model.num_experts),
      loss_{.scope = options.balance_scope,
            .balance_coef = options.balance_coef,
            .z_coef = options.z_loss_coef,
            .variance_coef = options.variance_coef,
            .n_slots = config::slots_per_token(options, model)},
      orthogonality_coef_(options.orthogonality_coef),
      routing_L_(layers_.size()) {
  for (std::size_t l = 0; l < layers_.size(); ++l) {
    n_statistics_ += layers_[l]->router().n_statistics();
    n_gradient_statistics_ += layers_[l]->router().n_gradient_statistics();
    layers_[l]->connect(routing_L_[l]);
  }
}

void RoutingStep::plan(Arena& arena, std::int64_t n_seq, bool training, bool layers_share_memory) {
  layers_share_memory_ = layers_share_memory;
  if (layers_.empty()) return;
  const std::int64_t L = n_layers(), E = n_experts_;
  const Shape shape_BE{n_seq, E};
  counts_ = {arena.take(Shape{L, n_seq, E}, DType::i32), arena.take(Shape{L, n_seq, E}, DType::f64),
             arena.take(Shape{L, n_seq}, DType::f64), arena.take(Shape{L, n_seq}, DType::f64),
             arena.take(Shape{L}, DType::i32)};
  if (training) {
    dprob_LBE_ = arena.take(Shape{L, n_seq, E}, DType::f64);
    global_sums_ = arena.take(Shape{L * E + n_statistics_}, DType::f64);
    global_count_LE_ = global_sums_.slice(0, L * E).reshape(Shape{L, E});
    if (n_statistics_ > 0) {
      statistics_S_ = arena.take(Shape{n_statistics_}, DType::f64);
      global_statistics_S_ = global_sums_.slice(L * E, n_statistics_);
    }
    if (orthogonality_coef_ != 0) overlap_L_ = arena.take(Shape{L}, DType::f64);
    if (n_gradient_statistics_ > 0) gradient_sums_ = arena.take(Shape{n_gradient_statistics_}, DType::f64);
  }
  if (!training)
    dprob_LBE_ = global_sums_ = global_count_LE_ = statistics_S_ = global_statistics_S_ = gradient_sums_ =
        overlap_L_ = {};
  std::int64_t first = 0, first_of_gradient = 0;  // of the layer's statistics
  for (std::int64_t l = 0; l < L; ++l) {
    LayerRouting& routing = routing_L_[static_cast<std::size_t>(l)];
    routing = {counts_.count_LBE.slice(l, 1).reshape(shape_BE),
               counts_.prob_sum_LBE.slice(l, 1).reshape(shape_BE),
               counts_.prob2_sum_LB.slice(l, 1).reshape(Shape{n_seq}),
               counts_.lse2_sum_LB.slice(l, 1).reshape(Shape{n_seq}), counts_.dropped_L.slice(l, 1)};
    if (!training) {
      // What an earlier plan had is gone.
      layers_[static_cast<std::size_t>(l)]->router().keep_statistics_in({});
      layers_[static_cast<std::size_t>(l)]->router().keep_gradient_statistics_in({});
      continue;
    }
    if (overlap_L_.defined()) routing.overlap_1 = overlap_L_.slice(l, 1);
    routing.loss.dprob_BE = dprob_LBE_.slice(l, 1).reshape(shape_BE);
    Router& router = layers_[static_cast<std::size_t>(l)]->router();
    if (const std::int64_t size = router.n_gradient_statistics(); size > 0) {
      router.keep_gradient_statistics_in(gradient_sums_.slice(first_of_gradient, size));
      first_of_gradient += size;
    }
    const std::int64_t size = router.n_statistics();
    if (size == 0) continue;
    router.keep_statistics_in(statistics_S_.slice(first, size));
    routing.loss.statistics_S = global_statistics_S_.slice(first, size);
    first += size;
  }
}

std::vector<RoutingDecision> RoutingStep::decisions() const {
  SY_CHECK(!layers_share_memory_, "the layers of this model share one memory");
  std::vector<RoutingDecision> decision_L;
  for (const RoutedLayer* layer : layers_) decision_L.push_back(layer->decision());
  return decision_L;
}

bool RoutingStep::needs_global_sums() const {
  return (loss_.balance_coef != 0 && loss_.scope == BalanceScope::global_batch) ||
         std::any_of(layers_.begin(), layers_.end(),
                     [](const RoutedLayer* each) { return each->router().needs_statistics_first(); });
}

void RoutingStep::begin(Context& ctx) {
  if (!layers_.empty()) ops::fill_zero(global_sums_, ctx);
  if (gradient_sums_.defined()) ops::fill_zero(gradient_sums_, ctx);
}

void RoutingStep::add_micro_batch(Context& ctx) {
  if (!layers_.empty()) ops::add_counts(global_count_LE_, counts_.count_LBE, ctx);
  if (n_statistics_ > 0) ops::accumulate(global_statistics_S_, statistics_S_, 1, ctx);
}

void RoutingStep::add_losses(Tensor loss_3, Tensor tokens_B, const GlobalBatch& batch, Context& ctx) {
  if (layers_.empty()) return;
  BalanceLoss loss = loss_;
  loss.n_tokens = batch.n_tokens;
  loss.n_sequences = batch.n_sequences;
  ops::balance_loss(dprob_LBE_, loss_3, counts_.count_LBE, counts_.prob_sum_LBE, counts_.prob2_sum_LB,
                    counts_.lse2_sum_LB, tokens_B, global_count_LE_, loss, ctx);
  // What one token of one layer has of a coefficient whose loss is a mean over both.
  const auto of_tokens = [&](double coef) {
    return coef / static_cast<double>(n_layers()) / static_cast<double>(batch.n_tokens);
  };
  for (std::size_t l = 0; l < layers_.size(); ++l) {
    RoutingLossGradient& gradient = routing_L_[l].loss;
    gradient.dlse2 = of_tokens(loss.z_coef);
    gradient.dprob2 = -of_tokens(loss.variance_coef);
    gradient.doverlap = of_tokens(orthogonality_coef_);
    gradient.token_share = 1 / static_cast<double>(batch.n_tokens);
    gradient.tokens_B = tokens_B;
    layers_[l]->add_layer_loss(loss_3.slice(2, 1), gradient, ctx);
    if (overlap_L_.defined())
      ops::accumulate(loss_3.slice(2, 1), routing_L_[l].overlap_1, gradient.doverlap, ctx);
  }
}

void RoutingStep::after_step(Context& ctx) {
  for (std::int64_t l = 0; l < n_layers(); ++l)
    layers_[static_cast<std::size_t>(l)]->router().after_step(
        global_count_LE_.slice(l, 1).reshape(Shape{n_experts_}), routing(l).loss.statistics_S, ctx);
}

std::int64_t RoutingStep::settle_tokens() const {
  std::int64_t most = 0;
  for (const RoutedLayer* layer : layers_) most = std::max(most, layer->router().settle_tokens());
  return most;
}

void RoutingStep::settle(double keep, Context& ctx) {
  for (std::int64_t l = 0; l < n_layers(); ++l)
    layers_[static_cast<std::size_t>(l)]->router().settle(
        global_count_LE_.slice(l, 1).reshape(Shape{n_experts_}), routing(l).loss.statistics_S, keep, ctx);
}

}  // namespace switchyard::router
