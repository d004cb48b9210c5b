#include "model/dense_layer.h"

#include "ops/linear.h"
#include "ops/swiglu.h"

namespace switchyard::model {

DenseLayer::DenseLayer(const std::string& prefix, std::int64_t hidden_size, std::int64_t width, double init_std,
                       ParameterStore& store)
    : hidden_(hidden_size), width_(width), store_(store) {
  const auto matrix = [&](const char* name, std::int64_t rows, std::int64_t columns) {
    return store.add(
        {.name = prefix + name, .shape = Shape{rows, columns}, .init = Init::normal, .init_std = init_std});
  };
  store.begin_group();
  gate_ = matrix("gate_proj.weight", width_, hidden_);
  matrix("up_proj.weight", width_, hidden_);
  store.begin_group();
  down_ = matrix("down_proj.weight", hidden_, width_);
}

void DenseLayer::plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype, bool keep) {
  gate_up_T2F_ = arena.take(Shape{n_seq * seq_len, 2 * width_}, dtype);
  act_TF_ = keep ? arena.take(Shape{n_seq * seq_len, width_}, dtype) : Tensor{};
}

Tensor DenseLayer::activated(Context& ctx) const {
  return act_TF_.defined() ? act_TF_
                           : ctx.scratch.take(Shape{gate_up_T2F_.rows(), width_}, gate_up_T2F_.dtype());
}

void DenseLayer::forward(Tensor out_TD, Tensor residual_TD, Tensor x_TD, const Batch&, Context& ctx) {
  ops::linear_forward(gate_up_T2F_, x_TD, store_.weight_block(gate_, gate_up_shape()), ops::Write::set, ctx);
  ScratchScope scope(ctx.scratch);
  const Tensor act_TF = activated(ctx);
  ops::swiglu_forward(act_TF, gate_up_T2F_, ctx);
  if (out_TD.defined()) ops::linear_forward_add(out_TD, residual_TD, act_TF, store_.weight(down_), ctx);
}

void DenseLayer::backward(Tensor dx_TD, Tensor dout_TD, Tensor x_TD, const Batch&, Context& ctx) {
  ScratchScope scope(ctx.scratch);
  const Tensor act_TF = activated(ctx);
  if (!act_TF_.defined()) ops::swiglu_forward(act_TF, gate_up_T2F_, ctx);
  const Tensor dact_TF = ctx.scratch.take(act_TF.shape(), act_TF.dtype());
  const Tensor dgate_up_T2F = ctx.scratch.take(gate_up_T2F_.shape(), gate_up_T2F_.dtype());
  ops::linear_backward_weight(store_.grad(down_), dout_TD, act_TF, ctx);
  ops::linear_backward_input(dact_TF, dout_TD, store_.weight(down_), ops::Write::set, ctx);
  ops::swiglu_backward(dgate_up_T2F, dact_TF, gate_up_T2F_, ctx);
  ops::linear_backward_weight(store_.grad_block(gate_, gate_up_shape()), dgate_up_T2F, x_TD, ctx);
  ops::linear_backward_input(dx_TD, dgate_up_T2F, store_.weight_block(gate_, gate_up_shape()), ops::Write::set,
                             ctx);
}

FfnCost DenseLayer::cost() const { return {.always = static_cast<double>(6 * hidden_ * width_)}; }

void DenseLayer::visit_saved(const router::TensorVisitor& visit) const {
  visit("mlp.gate_up_proj output", gate_up_T2F_);
  if (act_TF_.defined()) visit("mlp.act_fn output", act_TF_);
}

}  // namespace switchyard::model
