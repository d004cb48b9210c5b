#include "model/experts.h"

#include "core/device_memory.h"
#include "model/names.h"
#include "ops/linear.h"
#include "ops/moe.h"
#include "ops/overlap.h"
#include "ops/swiglu.h"

namespace switchyard::model {

Experts::Experts(const config::Model& model, std::int64_t layer, ParameterStore& store)
    : hidden_(model.hidden_size),
      width_(model.moe_intermediate_size),
      n_experts_(model.num_experts),
      n_here_(model.num_experts),
      store_(store) {
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

void Experts::hold_part(int place, int size) {
  SY_CHECK(size >= 1 && n_experts_ % size == 0, "{} experts have no {} equal parts", n_experts_, size);
  n_here_ = n_experts_ / size;
  first_ = place * n_here_;
}

void Experts::plan(Arena& arena, std::int64_t n_tokens, std::int64_t n_slots, std::int64_t n_rows, DType dtype,
                   bool keep) {
  saved_.count_E = arena.take(Shape{n_here_}, DType::i32);
  saved_.offset_Ep = arena.take(Shape{n_here_ + 1}, DType::i32);
  saved_.slot_row_SK = arena.take(Shape{n_tokens, n_slots}, DType::i32);
  saved_.row_RD = keep ? arena.take(Shape{n_rows, hidden_}, dtype) : Tensor{};
  saved_.weight_R = arena.take(Shape{n_rows}, accumulation_dtype(dtype));
  saved_.gate_up_R2F = arena.take(Shape{n_rows, 2 * width_}, dtype);
  saved_.act_RF = keep ? arena.take(Shape{n_rows, width_}, dtype) : Tensor{};
  slot_row_SK_ = saved_.slot_row_SK;
}

void Experts::sort(Tensor expert_SK, Tensor need_1, Context& ctx) {
  slot_row_SK_ = saved_.slot_row_SK.slice(0, expert_SK.rows());
  ops::moe_permutation(saved_.count_E, saved_.offset_Ep, slot_row_SK_, expert_SK, ctx);
  if (need_1.defined()) ops::limit_rows(saved_.offset_Ep, slot_row_SK_, need_1, saved_.gate_up_R2F.rows(), ctx);
}

Experts::Rows Experts::rows(Context& ctx) const {
  if (keeps_rows()) return {saved_.row_RD, saved_.act_RF};
  const auto room = [&](std::int64_t columns) {
    return ctx.scratch.take(Shape{saved_.gate_up_R2F.rows(), columns}, saved_.gate_up_R2F.dtype());
  };
  const Tensor row_RD = room(hidden_);
  return {row_RD, room(width_)};
}

void Experts::dispatch(const Rows& rows, Tensor x_SD, Tensor weight_SK, Context& ctx) const {
  ops::moe_dispatch_forward(rows.row_RD, saved_.weight_R, x_SD, weight_SK, slot_row_SK_, ctx);
}

void Experts::gate_up(const Rows& rows, Context& ctx) const {
  ops::grouped_gate_up_forward(rows.act_RF, saved_.gate_up_R2F, rows.row_RD,
                               store_.weight_block(gate_up_row(), gate_up_shape()), saved_.weight_R,
                               saved_.offset_Ep, ctx);
}

void Experts::activate(const Rows& rows, Context& ctx) const {
  ops::expert_swiglu_forward(rows.act_RF, saved_.gate_up_R2F, saved_.weight_R, saved_.offset_Ep, ctx);
}

Tensor Experts::outputs(const Rows& rows, Context& ctx) const {
  const Tensor out_RD = ctx.scratch.take(rows.row_RD.shape(), rows.row_RD.dtype());
  ops::grouped_linear_forward(out_RD, rows.act_RF, store_.weight_block(down_row(), down_shape()),
                              saved_.offset_Ep, ctx);
  return out_RD;
}

void Experts::combine(Tensor out_SD, Tensor addend_SD, const Rows& rows, Tensor overlap_1, Context& ctx) const {
  const ScratchScope scope(ctx.scratch);
  const Tensor out_RD = outputs(rows, ctx);
  if (overlap_1.defined()) ops::expert_overlap_forward(overlap_1, out_RD, slot_row_SK_, ctx);
  ops::moe_combine_forward(out_SD, addend_SD, out_RD, slot_row_SK_, ctx);
}

Experts::RowGradients Experts::row_gradients(bool apart, Context& ctx) const {
  const auto rows = [&] {
    return ctx.scratch.take(Shape{saved_.gate_up_R2F.rows(), hidden_}, saved_.gate_up_R2F.dtype());
  };
  const Tensor dout_RD = rows(), drow_RD = apart ? rows() : dout_RD;
  return {dout_RD, drow_RD, ctx.scratch.take(saved_.weight_R.shape(), saved_.weight_R.dtype())};
}

void Experts::begin_backward(const RowGradients& gradients, Tensor dout_SD, Context& ctx) const {
  ops::moe_combine_backward(gradients.dout_RD, dout_SD, slot_row_SK_, ctx);
}

void Experts::add_overlap_gradient(const RowGradients& gradients, const Rows& rows, double scale,
                                   Context& ctx) const {
  const ScratchScope scope(ctx.scratch);
  ops::expert_overlap_backward(gradients.dout_RD, outputs(rows, ctx), slot_row_SK_, scale, ctx);
}

Tensor Experts::gate_up_gradient(const RowGradients& gradients, Context& ctx) const {
  const Tensor dgate_up_R2F = ctx.scratch.take(saved_.gate_up_R2F.shape(), saved_.gate_up_R2F.dtype());
  ops::grouped_down_backward(dgate_up_R2F, gradients.dweight_R, gradients.dout_RD,
                             store_.weight_block(down_row(), down_shape()), saved_.gate_up_R2F, saved_.weight_R,
                             saved_.offset_Ep, ctx);
  return dgate_up_R2F;
}

void Experts::backward_weights(const RowGradients& gradients, Tensor dgate_up_R2F, const Rows& rows,
                               Context& ctx) const {
  ops::grouped_linear_backward_weight(store_.grad_block(down_row(), down_shape()), gradients.dout_RD,
                                      rows.act_RF, saved_.offset_Ep, ctx);
  ops::grouped_linear_backward_weight(store_.grad_block(gate_up_row(), gate_up_shape()), dgate_up_R2F,
                                      rows.row_RD, saved_.offset_Ep, ctx);
}

void Experts::backward_input(const RowGradients& gradients, Tensor dgate_up_R2F, Context& ctx) const {
  ops::grouped_linear_backward_input(gradients.drow_RD, dgate_up_R2F,
                                     store_.weight_block(gate_up_row(), gate_up_shape()), saved_.offset_Ep,
                                     ctx);
}

void Experts::finish_backward(Tensor dx_SD, Tensor dweight_SK, const RowGradients& gradients,
                              Context& ctx) const {
  ops::moe_dispatch_backward(dx_SD, dweight_SK, gradients.drow_RD, gradients.dweight_R, slot_row_SK_, ctx);
}

void Experts::visit_saved(const router::TensorVisitor& visit) const {
  const std::int64_t rows = HostCopy(saved_.offset_Ep)->as<std::int32_t>()[n_here_];
  visit("mlp.experts gate_up_proj output", saved_.gate_up_R2F.slice(0, rows));
  if (keeps_rows()) visit("mlp.experts weighted act_fn output", saved_.act_RF.slice(0, rows));
}

}  // namespace switchyard::model
