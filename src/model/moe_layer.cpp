#include "model/moe_layer.h"

#include <algorithm>

#include "model/names.h"
#include "ops/device.h"
#include "ops/elementwise.h"
#include "ops/moe.h"

namespace switchyard::model {

namespace {

router::RouterBatch router_batch(const Batch& batch) {
  return {.token_T = batch.token_T,
          .n_seq = batch.n_seq,
          .seq_len = batch.seq_len,
          .training = batch.training,
          .seed = batch.seed,
          .rng_offset_2 = batch.rng_offset_2,
          .attention_entropy_T = batch.attention_entropy_T};
}

// A router computes in float32 whatever the activations are: the tensor itself, or a copy in scratch.
Tensor as_router_sees(const Tensor& x_TD, Context& ctx) {
  if (x_TD.dtype() == accumulation_dtype(x_TD.dtype())) return x_TD;
  const Tensor copy_TD = ctx.scratch.take(x_TD.shape(), accumulation_dtype(x_TD.dtype()));
  ops::copy(copy_TD, x_TD, ctx);
  return copy_TD;
}

// Whether it is one of the first num_hash_layers layers with experts; those of multi-token prediction come
// last.
bool is_hashed(const config::Model& model, const config::Router& options, std::int64_t layer) {
  if (layer >= model.num_hidden_layers) return false;
  const auto before = std::count_if(model.layers.begin(), model.layers.begin() + layer,
                                    [](const config::LayerSpec& spec) { return spec.moe; });
  return before < options.num_hash_layers;
}

}  // namespace

MoeLayer::MoeLayer(const config::Model& model, const config::Router& router_options, std::int64_t layer,
                   const ExpertRanks& ranks, ParameterStore& store)
    : ranks_(ranks),
      n_experts_(model.num_experts),
      slot_cost_(static_cast<double>(6 * model.hidden_size * model.moe_intermediate_size)) {
  const std::size_t first_row = store.rows().size();
  router_ = std::make_unique<router::RoutedLayer>(
      router_options,
      router::RouterShape{.hidden_size = model.hidden_size,
                          .n_experts = model.num_experts,
                          .n_slots = model.num_experts_per_tok,
                          .n_group = model.n_group,
                          .topk_group = model.topk_group,
                          .normalise_weights = model.norm_topk_prob,
                          .weight_scale = model.routed_scaling_factor,
                          .init_std = model.initializer_range,
                          .vocab_size = model.vocab_size,
                          .layer = layer,
                          .hashed = is_hashed(model, router_options, layer),
                          .sigmoid_scores = model.layout->scoring_func == "sigmoid"},
      router_prefix(*model.layout, layer), store);
  router_cost_ = 2.0 * static_cast<double>(router_->router().extra_multiply_adds());
  for (std::size_t row = first_row; row < store.rows().size(); ++row)
    if (store.rows()[row].shape.rank() == 2)
      router_cost_ += 2.0 * static_cast<double>(store.rows()[row].shape.numel());
  if (model.n_shared_experts > 0)
    shared_ = std::make_unique<DenseLayer>(
        moe_prefix(*model.layout, layer) + "shared_experts.", model.hidden_size,
        model.n_shared_experts * model.moe_intermediate_size, model.initializer_range, store);
  experts_.emplace(model, layer, store);
}

void MoeLayer::plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype, bool keep) {
  const std::int64_t K = router_->router().n_slots();
  n_tokens_ = n_seq * seq_len;
  router_->plan(arena, n_seq, seq_len, accumulation_dtype(dtype));
  if (shared_) shared_->plan(arena, n_seq, seq_len, dtype, keep);
  std::int64_t most_tokens = n_tokens_;
  if (ranks_.share()) {
    exchange_.emplace(*ranks_.group, ranks_.way, ranks_.windows.get());
    experts_->hold_part(exchange_->place(), exchange_->size());
    most_tokens = exchange_->most_tokens(n_tokens_);
  }
  experts_->plan(arena, most_tokens, K, ranks_.n_rows(n_tokens_, K, n_experts_), dtype, keep);
}

MoeLayer::Round MoeLayer::round(std::int64_t number) const {
  const auto begin = [&](std::int64_t n) { return n_tokens_ * n / ranks_.n_rounds; };
  return {begin(number), begin(number + 1) - begin(number)};
}

Tensor MoeLayer::experts_input(Tensor x_TD, Context& ctx) const {
  if (!decision_.expert_input_addend_TD.defined()) return x_TD;
  const Tensor input_TD = ctx.scratch.take(x_TD.shape(), x_TD.dtype());
  ops::add(input_TD, x_TD, decision_.expert_input_addend_TD, ctx);
  return input_TD;
}

void MoeLayer::fill_rows(const Experts::Rows& rows, Tensor input_TD, const Round& round, bool route,
                         const Work& meanwhile, Context& ctx) {
  if (!exchange_) {
    meanwhile();
    if (route) experts_->sort(decision_.expert_TK, {}, ctx);
    return experts_->dispatch(rows, input_TD, decision_.weight_TK, ctx);
  }
  const ScratchScope scope(ctx.scratch);
  const Tensor expert_TK = round.of(decision_.expert_TK), weight_TK = round.of(decision_.weight_TK);
  if (route) exchange_->route(expert_TK, experts_->n_here(), ctx);
  const Tensor expert_SK = route ? exchange_->room(expert_TK, n_tokens_, ctx) : Tensor{};
  const Tensor weight_SK = exchange_->room(weight_TK, n_tokens_, ctx);
  const Tensor input_SD = exchange_->arrivals(input_TD, n_tokens_, ctx);
  const parallel::TokenExchange::Spread input{input_SD, round.of(input_TD)}, weights{weight_SK, weight_TK};
  ops::Beside beside(ctx);
  if (route)
    exchange_->spread(input, {{expert_SK, expert_TK}, weights}, ctx);
  else
    exchange_->spread(input, {weights}, ctx);
  beside.end();
  meanwhile();
  beside.join();
  if (route) {
    ops::keep_experts(expert_SK, experts_->first_here(), experts_->n_here(), ctx);
    experts_->sort(expert_SK, ranks_.largest_need_1, ctx);
  }
  experts_->dispatch(rows, input_SD, weight_SK, ctx);
}

void MoeLayer::forward_experts(Tensor out_TD, Tensor addend_TD, Tensor input_TD, const Work& first,
                               Context& ctx) {
  if (!overlaps()) first();
  const bool later = in_rounds() && !out_TD.defined();  // the backward pass makes each round's again
  if (later && overlaps()) first();
  for (std::int64_t number = 0; number < (later ? 0 : ranks_.n_rounds); ++number) {
    const ScratchScope scope(ctx.scratch);
    const Round tokens = round(number);
    const Experts::Rows rows = experts_->rows(ctx);
    fill_rows(
        rows, input_TD, tokens, true, number == 0 && overlaps() ? first : [] {}, ctx);
    experts_->gate_up(rows, ctx);
    if (!out_TD.defined()) continue;
    if (!exchange_) {
      experts_->combine(out_TD, addend_TD, rows, router_->overlap_1(), ctx);
      continue;
    }
    SY_CHECK(!router_->overlap_1().defined(), "the outputs that a token has are on several ranks");
    const Tensor out_SD = exchange_->departures(out_TD, n_tokens_, ctx);
    ops::fill_zero(out_SD, ctx);
    experts_->combine(out_SD, out_SD, rows, {}, ctx);
    exchange_->collect(tokens.of(out_TD), tokens.of(addend_TD), out_SD, ctx);
  }
}

void MoeLayer::backward_experts(Tensor dinput_TD, Tensor dweight_TK, Tensor dout_TD, Tensor input_TD,
                                const Work& first, Context& ctx) {
  if (!overlaps()) first();
  for (std::int64_t number = 0; number < ranks_.n_rounds; ++number) {
    const ScratchScope scope(ctx.scratch);
    const Round tokens = round(number);
    const bool again = in_rounds();  // the last round alone has left anything
    const Experts::Rows rows = experts_->rows(ctx);
    if (again || !experts_->keeps_rows())
      fill_rows(
          rows, input_TD, tokens, again, [] {}, ctx);
    if (again)
      experts_->gate_up(rows, ctx);
    else if (!experts_->keeps_rows())
      experts_->activate(rows, ctx);
    const Experts::RowGradients gradients = experts_->row_gradients(overlaps(), ctx);
    if (exchange_) {
      const ScratchScope of_spread(ctx.scratch);
      const Tensor dout_SD = exchange_->arrivals(dout_TD, n_tokens_, ctx);
      ops::Beside beside(ctx);
      exchange_->spread(dout_SD, tokens.of(dout_TD), ctx);
      beside.end();
      if (number == 0 && overlaps()) first();
      beside.join();
      experts_->begin_backward(gradients, dout_SD, ctx);
    } else {
      experts_->begin_backward(gradients, dout_TD, ctx);
      if (router_->overlap_1().defined())
        experts_->add_overlap_gradient(gradients, rows, router_->doverlap(), ctx);
    }
    backward_rows(dinput_TD, dweight_TK, gradients, rows, tokens, ctx);
  }
}

void MoeLayer::backward_rows(Tensor dinput_TD, Tensor dweight_TK, const Experts::RowGradients& gradients,
                             const Experts::Rows& rows, const Round& round, Context& ctx) {
  if (!overlaps()) {
    {
      const ScratchScope scope(ctx.scratch);
      const Tensor dgate_up_R2F = experts_->gate_up_gradient(gradients, ctx);
      experts_->backward_weights(gradients, dgate_up_R2F, rows, ctx);
      experts_->backward_input(gradients, dgate_up_R2F, ctx);
    }
    if (!exchange_) return experts_->finish_backward(dinput_TD, dweight_TK, gradients, ctx);
  }
  const Tensor dgate_up_R2F = overlaps() ? experts_->gate_up_gradient(gradients, ctx) : Tensor{};
  if (overlaps()) experts_->backward_input(gradients, dgate_up_R2F, ctx);
  const Tensor dinput_SD = exchange_->departures(dinput_TD, n_tokens_, ctx),
               dweight_SK = exchange_->room(dweight_TK, n_tokens_, ctx);
  ops::fill_zero(dinput_SD, ctx);
  experts_->finish_backward(dinput_SD, dweight_SK, gradients, ctx);
  ops::Beside beside(ctx);
  // A slot's weight has a gradient on one rank, zero on all others: the sum is exact.
  exchange_->collect({round.of(dinput_TD), round.of(dinput_TD), dinput_SD},
                     {{round.of(dweight_TK), {}, dweight_SK}}, ctx);
  beside.end();
  if (overlaps()) experts_->backward_weights(gradients, dgate_up_R2F, rows, ctx);
  beside.join();
}

void MoeLayer::forward(Tensor out_TD, Tensor residual_TD, Tensor x_TD, const Batch& batch, Context& ctx) {
  {
    ScratchScope scope(ctx.scratch);
    decision_ = router_->forward(as_router_sees(x_TD, ctx), router_batch(batch), ctx);
  }
  const ScratchScope scope(ctx.scratch);
  const auto shared = [&] {
    if (shared_) shared_->forward(out_TD, residual_TD, x_TD, batch, ctx);
  };
  forward_experts(out_TD, shared_ ? out_TD : residual_TD, experts_input(x_TD, ctx), std::ref(shared), ctx);
}

void MoeLayer::backward(Tensor dx_TD, Tensor dout_TD, Tensor x_TD, const Batch& batch, Context& ctx) {
  ScratchScope scope(ctx.scratch);
  const auto scratch_like = [&](const Tensor& tensor) {
    return ctx.scratch.take(tensor.shape(), tensor.dtype());
  };
  const Tensor dweight_TK = scratch_like(decision_.weight_TK);
  router::RoutingGradient gradient{.dweight_TK = dweight_TK};
  const auto shared = [&] {
    if (shared_)
      shared_->backward(dx_TD, dout_TD, x_TD, batch, ctx);
    else
      ops::fill_zero(dx_TD, ctx);
  };
  if (decision_.expert_input_addend_TD.defined()) {
    const Tensor dinput_TD = scratch_like(dx_TD);
    ops::fill_zero(dinput_TD, ctx);
    // Where tokens are exchanged a step may go in rounds, which read it, and room is planned for one that does
    // not.
    const bool read = exchange_ || !experts_->keeps_rows();
    const Tensor input_TD = read ? experts_input(x_TD, ctx) : Tensor{};
    backward_experts(dinput_TD, dweight_TK, dout_TD, input_TD, std::ref(shared), ctx);
    ops::add(dx_TD, dx_TD, dinput_TD, ctx);
    gradient.daddend_TD = as_router_sees(dinput_TD, ctx);
  } else {
    backward_experts(dx_TD, dweight_TK, dout_TD, x_TD, std::ref(shared), ctx);
  }
  const Tensor seen_TD = as_router_sees(x_TD, ctx);
  if (seen_TD.dtype() == dx_TD.dtype()) {
    router_->backward(dx_TD, gradient, seen_TD, router_batch(batch), ctx);
  } else {
    const Tensor dseen_TD = scratch_like(seen_TD);
    ops::fill_zero(dseen_TD, ctx);
    router_->backward(dseen_TD, gradient, seen_TD, router_batch(batch), ctx);
    ops::add(dx_TD, dx_TD, dseen_TD, ctx);
  }
  if (router_->observes_gradient())
    router_->observe_gradient(as_router_sees(dx_TD, ctx), router_batch(batch), ctx);
}

FfnCost MoeLayer::cost() const {
  return {.router = router_cost_, .per_slot = slot_cost_, .always = shared_ ? shared_->cost().always : 0};
}

void MoeLayer::visit_saved(const router::TensorVisitor& visit) const {
  router_->visit_saved([&](const std::string& name, const Tensor& tensor) { visit("mlp " + name, tensor); });
  experts_->visit_saved(visit);
  if (shared_)
    shared_->visit_saved(
        [&](const std::string& name, const Tensor& tensor) { visit("shared_experts " + name, tensor); });
}

}  // namespace switchyard::model
