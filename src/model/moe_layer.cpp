#include "model/moe_layer.h"

#include "core/device_memory.h"
#include "model/names.h"
#include "ops/elementwise.h"
#include "ops/linear.h"
#include "ops/moe.h"
#include "ops/swiglu.h"

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

}  // namespace

MoeLayer::MoeLayer(const config::Model& model, const config::Router& router_options, std::int64_t layer,
                   ParameterStore& store)
    : hidden_(model.hidden_size),
      width_(model.moe_intermediate_size),
      n_experts_(model.num_experts),
      store_(store) {
  const std::size_t first_row = store.rows().size();
  router_ =
      std::make_unique<router::RoutedLayer>(router_options,
                                            router::RouterShape{.hidden_size = hidden_,
                                                                .n_experts = n_experts_,
                                                                .n_slots = model.num_experts_per_tok,
                                                                .n_group = model.n_group,
                                                                .topk_group = model.topk_group,
                                                                .normalise_weights = model.norm_topk_prob,
                                                                .weight_scale = model.routed_scaling_factor,
                                                                .init_std = model.initializer_range,
                                                                .layer = layer},
                                            moe_prefix(*model.layout, layer) + "gate.", store);
  n_slots_ = router_->router().n_slots();
  router_cost_ = 2.0 * static_cast<double>(router_->router().extra_multiply_adds());
  for (std::size_t row = first_row; row < store.rows().size(); ++row)
    if (store.rows()[row].shape.rank() == 2)
      router_cost_ += 2.0 * static_cast<double>(store.rows()[row].shape.numel());
  const auto matrix = [&](std::int64_t expert, const std::string& name, std::int64_t rows,
                          std::int64_t columns) {
    return store.add({.name = name,
                      .shape = Shape{rows, columns},
                      .init = Init::normal,
                      .init_std = model.initializer_range,
                      .sharding = Sharding::by_expert,
                      .expert = expert,
                      .n_experts = n_experts_});
  };
  if (model.n_shared_experts > 0)
    shared_ = std::make_unique<DenseLayer>(moe_prefix(*model.layout, layer) + "shared_experts.", hidden_,
                                           model.n_shared_experts * width_, model.initializer_range, store);
  store.begin_group();
  for (std::int64_t e = 0; e < n_experts_; ++e) {
    const std::size_t row = matrix(e, expert_names(*model.layout, layer, e).gate, width_, hidden_);
    if (e == 0) gate_up_ = row;
    matrix(e, expert_names(*model.layout, layer, e).up, width_, hidden_);
  }
  store.begin_group();
  for (std::int64_t e = 0; e < n_experts_; ++e) {
    const std::size_t row = matrix(e, expert_names(*model.layout, layer, e).down, hidden_, width_);
    if (e == 0) down_ = row;
  }
}

void MoeLayer::plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype, bool keep) {
  const std::int64_t n_tokens = n_seq * seq_len, max_rows = n_tokens * n_slots_;
  router_->plan(arena, n_seq, seq_len, accumulation_dtype(dtype));
  if (shared_) shared_->plan(arena, n_seq, seq_len, dtype, keep);
  saved_.count_E = arena.take(Shape{n_experts_}, DType::i32);
  saved_.offset_Ep = arena.take(Shape{n_experts_ + 1}, DType::i32);
  saved_.slot_row_TK = arena.take(Shape{n_tokens, n_slots_}, DType::i32);
  saved_.row_RD = keep ? arena.take(Shape{max_rows, hidden_}, dtype) : Tensor{};
  saved_.weight_R = arena.take(Shape{max_rows}, accumulation_dtype(dtype));
  saved_.gate_up_R2F = arena.take(Shape{max_rows, 2 * width_}, dtype);
  saved_.act_RF = keep ? arena.take(Shape{max_rows, width_}, dtype) : Tensor{};
}

Tensor MoeLayer::kept_or_room(const Tensor& kept, std::int64_t columns, Context& ctx) const {
  return kept.defined()
             ? kept
             : ctx.scratch.take(Shape{saved_.gate_up_R2F.rows(), columns}, saved_.gate_up_R2F.dtype());
}

void MoeLayer::dispatch(Tensor row_RD, Tensor x_TD, Context& ctx) const {
  const router::RoutingDecision& decision = saved_.decision;
  ScratchScope scope(ctx.scratch);
  Tensor input_TD = x_TD;
  if (decision.expert_input_addend_TD.defined()) {
    input_TD = ctx.scratch.take(x_TD.shape(), x_TD.dtype());
    ops::add(input_TD, x_TD, decision.expert_input_addend_TD, ctx);
  }
  ops::moe_dispatch_forward(row_RD, saved_.weight_R, input_TD, decision.weight_TK, saved_.slot_row_TK, ctx);
}

void MoeLayer::forward(Tensor out_TD, Tensor residual_TD, Tensor x_TD, const Batch& batch, Context& ctx) {
  const Saved& saved = saved_;
  {
    ScratchScope scope(ctx.scratch);
    saved_.decision = router_->forward(as_router_sees(x_TD, ctx), router_batch(batch), ctx);
  }
  ops::moe_permutation(saved.count_E, saved.offset_Ep, saved.slot_row_TK, saved.decision.expert_TK, ctx);
  {
    ScratchScope scope(ctx.scratch);
    const Tensor row_RD = kept_or_room(saved.row_RD, hidden_, ctx);
    const Tensor act_RF = kept_or_room(saved.act_RF, width_, ctx);
    dispatch(row_RD, x_TD, ctx);
    ops::grouped_gate_up_forward(act_RF, saved.gate_up_R2F, row_RD,
                                 store_.weight_block(gate_up_, gate_up_shape()), saved.weight_R,
                                 saved.offset_Ep, ctx);
    if (out_TD.defined()) {
      const Tensor out_RD = ctx.scratch.take(row_RD.shape(), row_RD.dtype());
      ops::grouped_linear_forward(out_RD, act_RF, store_.weight_block(down_, down_shape()), saved.offset_Ep,
                                  ctx);
      ops::moe_combine_forward(out_TD, residual_TD, out_RD, saved.slot_row_TK, ctx);
    }
  }
  if (shared_) shared_->forward(out_TD, out_TD, x_TD, batch, ctx);
}

void MoeLayer::backward(Tensor dx_TD, Tensor dout_TD, Tensor x_TD, const Batch& batch, Context& ctx) {
  const auto& [decision, count_E, offset_Ep, slot_row_TK, kept_row_RD, weight_R, gate_up_R2F, kept_act_RF] =
      saved_;
  ScratchScope scope(ctx.scratch);
  const auto scratch_like = [&](const Tensor& tensor) {
    return ctx.scratch.take(tensor.shape(), tensor.dtype());
  };
  const Tensor row_RD = kept_or_room(kept_row_RD, hidden_, ctx),
               act_RF = kept_or_room(kept_act_RF, width_, ctx);
  if (!kept_row_RD.defined()) {
    dispatch(row_RD, x_TD, ctx);
    ops::expert_swiglu_forward(act_RF, gate_up_R2F, weight_R, offset_Ep, ctx);
  }
  const Tensor dweight_TK = scratch_like(decision.weight_TK);
  const Tensor dweight_R = scratch_like(weight_R);
  const Tensor dout_RD = scratch_like(row_RD);
  const Tensor dgate_up_R2F = scratch_like(gate_up_R2F);

  ops::moe_combine_backward(dout_RD, dout_TD, slot_row_TK, ctx);
  ops::grouped_linear_backward_weight(store_.grad_block(down_, down_shape()), dout_RD, act_RF, offset_Ep, ctx);
  ops::grouped_down_backward(dgate_up_R2F, dweight_R, dout_RD, store_.weight_block(down_, down_shape()),
                             gate_up_R2F, weight_R, offset_Ep, ctx);
  ops::grouped_linear_backward_weight(store_.grad_block(gate_up_, gate_up_shape()), dgate_up_R2F, row_RD,
                                      offset_Ep, ctx);
  const Tensor drow_RD = dout_RD;  // its last reader is behind us
  ops::grouped_linear_backward_input(drow_RD, dgate_up_R2F, store_.weight_block(gate_up_, gate_up_shape()),
                                     offset_Ep, ctx);
  if (shared_)
    shared_->backward(dx_TD, dout_TD, x_TD, batch, ctx);
  else
    ops::fill_zero(dx_TD, ctx);
  router::RoutingGradient gradient{.dweight_TK = dweight_TK};
  if (decision.expert_input_addend_TD.defined()) {
    const Tensor dinput_TD = scratch_like(dx_TD);
    ops::fill_zero(dinput_TD, ctx);
    ops::moe_dispatch_backward(dinput_TD, dweight_TK, drow_RD, dweight_R, slot_row_TK, ctx);
    ops::add(dx_TD, dx_TD, dinput_TD, ctx);
    gradient.daddend_TD = as_router_sees(dinput_TD, ctx);
  } else {
    ops::moe_dispatch_backward(dx_TD, dweight_TK, drow_RD, dweight_R, slot_row_TK, ctx);
  }
  const Tensor seen_TD = as_router_sees(x_TD, ctx);
  if (seen_TD.dtype() == dx_TD.dtype())
    return router_->backward(dx_TD, gradient, seen_TD, router_batch(batch), ctx);
  const Tensor dseen_TD = scratch_like(seen_TD);
  ops::fill_zero(dseen_TD, ctx);
  router_->backward(dseen_TD, gradient, seen_TD, router_batch(batch), ctx);
  ops::add(dx_TD, dx_TD, dseen_TD, ctx);
}

FfnCost MoeLayer::cost() const {
  return {.router = router_cost_,
          .per_slot = static_cast<double>(6 * hidden_ * width_),
          .always = shared_ ? shared_->cost().always : 0};
}

void MoeLayer::visit_saved(const router::TensorVisitor& visit) const {
  const std::int64_t rows = HostCopy(saved_.offset_Ep)->as<std::int32_t>()[n_experts_];
  router_->visit_saved([&](const std::string& name, const Tensor& tensor) { visit("mlp " + name, tensor); });
  visit("mlp.experts gate_up_proj output", saved_.gate_up_R2F.slice(0, rows));
  if (saved_.act_RF.defined()) visit("mlp.experts weighted act_fn output", saved_.act_RF.slice(0, rows));
  if (shared_)
    shared_->visit_saved(
        [&](const std::string& name, const Tensor& tensor) { visit("shared_experts " + name, tensor); });
}

}  // namespace switchyard::model
