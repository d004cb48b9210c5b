#include "model/gqa_layer.h"

#include <cmath>

#include "model/names.h"
#include "ops/attention.h"
#include "ops/elementwise.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/rope.h"

namespace switchyard::model {

GqaLayer::GqaLayer(const config::Model& model, std::int64_t layer, ParameterStore& store)
    : hidden_(model.hidden_size),
      heads_(model.num_attention_heads),
      kv_heads_(model.num_key_value_heads),
      width_(model.head_dim),
      window_(model.sliding_window),
      qk_norm_(model.qk_norm),
      eps_(model.rms_norm_eps),
      store_(store) {
  const std::string prefix = layer_prefix(layer) + "self_attn.";
  const auto matrix = [&](const char* name, std::int64_t rows, std::int64_t columns) {
    return store.add({.name = prefix + name,
                      .shape = Shape{rows, columns},
                      .init = Init::normal,
                      .init_std = model.initializer_range});
  };
  store.begin_group();
  q_weight_ = matrix("q_proj.weight", heads_ * width_, hidden_);
  matrix("k_proj.weight", kv_heads_ * width_, hidden_);
  matrix("v_proj.weight", kv_heads_ * width_, hidden_);
  store.begin_group();
  o_weight_ = matrix("o_proj.weight", hidden_, heads_ * width_);
  if (model.attention_bias) {
    const auto bias = [&](const char* name, std::int64_t size) {
      return store.add(
          {.name = prefix + name, .shape = Shape{size}, .init = Init::zeros, .weight_decay = false});
    };
    store.begin_group();
    q_bias_ = bias("q_proj.bias", heads_ * width_);
    bias("k_proj.bias", kv_heads_ * width_);
    bias("v_proj.bias", kv_heads_ * width_);
    store.begin_group();
    o_bias_ = bias("o_proj.bias", hidden_);
  }
  if (has_norm()) {
    const auto norm = [&](const char* name, std::int64_t heads) {
      store.begin_group();
      const Shape shape{qk_norm_ == config::QkNorm::head ? width_ : heads * width_};
      return store.add({.name = prefix + name, .shape = shape, .init = Init::ones, .weight_decay = false});
    };
    q_norm_ = norm("q_norm.weight", heads_);
    k_norm_ = norm("k_norm.weight", kv_heads_);
  }
}

void GqaLayer::plan(Arena& arena, std::int64_t n_tokens, DType dtype) {
  const auto statistic = [&](std::int64_t heads) {
    return arena.take(Shape{n_tokens, heads}, accumulation_dtype(dtype));
  };
  saved_.qkv_TM = arena.take(Shape{n_tokens, (heads_ + 2 * kv_heads_) * width_}, dtype);
  if (has_norm()) {
    const bool by_head = qk_norm_ == config::QkNorm::head;
    saved_.q_THN = arena.take(Shape{n_tokens, heads_ * width_}, dtype);
    saved_.k_TGN = arena.take(Shape{n_tokens, kv_heads_ * width_}, dtype);
    saved_.q_rstd_TH = statistic(by_head ? heads_ : 1);
    saved_.k_rstd_TG = statistic(by_head ? kv_heads_ : 1);
  } else {
    saved_.q_THN = q_columns(saved_.qkv_TM);
    saved_.k_TGN = k_columns(saved_.qkv_TM);
  }
  saved_.lse_TH = statistic(heads_);
  entropy_.plan(arena, n_tokens, heads_, dtype);
  saved_.attn_out_THN = arena.take(Shape{n_tokens, heads_ * width_}, dtype);
}

void GqaLayer::plan_cache(Arena& arena, std::int64_t n_seq, std::int64_t positions, DType dtype) {
  cached_k_SGN_.clear();
  cached_v_SGN_.clear();
  for (std::int64_t b = 0; b < n_seq; ++b) {
    cached_k_SGN_.push_back(arena.take(Shape{positions, kv_heads_ * width_}, dtype));
    cached_v_SGN_.push_back(arena.take(Shape{positions, kv_heads_ * width_}, dtype));
  }
}

ops::AttentionShape GqaLayer::shape_of(const Batch& batch) const {
  return {batch.n_seq,
          batch.seq_len,
          heads_,
          kv_heads_,
          width_,
          width_,
          1.0 / std::sqrt(static_cast<double>(width_)),
          batch.n_past.value_or(0),
          window_};
}

void GqaLayer::forward(Tensor out_TD, Tensor residual_TD, Tensor x_TD, const RopeTable& rope,
                       const Batch& batch, Context& ctx) {
  const auto& [qkv_TM, q_THN, k_TGN, q_rstd_TH, k_rstd_TG, lse_TH, attn_out_THN] = saved_;
  ops::linear_forward(qkv_TM, x_TD, store_.weight_block(q_weight_, qkv_shape()), ops::Write::set, ctx);
  if (q_bias_) ops::bias_forward(qkv_TM, store_.weight_block(*q_bias_, qkv_bias_shape()), ctx);
  if (qk_norm_ == config::QkNorm::head) {
    ops::qk_norm_rope_forward({q_THN, k_TGN}, {q_rstd_TH, k_rstd_TG}, qkv_TM,
                              {store_.weight(q_norm_), store_.weight(k_norm_)}, rope.cos_SP, rope.sin_SP,
                              batch.seq_len, eps_, ctx);
  } else {
    if (qk_norm_ == config::QkNorm::projection) {
      ops::rmsnorm_forward(q_THN, q_rstd_TH, q_columns(qkv_TM), store_.weight(q_norm_), eps_, ctx);
      ops::rmsnorm_forward(k_TGN, k_rstd_TG, k_columns(qkv_TM), store_.weight(k_norm_), eps_, ctx);
    }
    ops::rope_forward(q_THN, rope.cos_SP, rope.sin_SP, batch.seq_len, {width_}, ctx);
    ops::rope_forward(k_TGN, rope.cos_SP, rope.sin_SP, batch.seq_len, {width_}, ctx);
  }
  if (batch.n_past)
    attend_cached(batch, ctx);
  else
    ops::attention_forward(attn_out_THN, lse_TH, q_THN, k_TGN, v_columns(qkv_TM), batch.kv_begin_T,
                           shape_of(batch), entropy_.entropy_TH(), ctx);
  entropy_.finish(batch, ctx);
  ops::linear_forward_add(out_TD, residual_TD, attn_out_THN, store_.weight(o_weight_), ctx);
  if (o_bias_) ops::bias_forward(out_TD, store_.weight(*o_bias_), ctx);
}

// One sequence after the other: each has its own past.
void GqaLayer::attend_cached(const Batch& batch, Context& ctx) {
  const std::int64_t first = *batch.n_past, n = batch.seq_len;
  ops::AttentionShape shape = shape_of(batch);
  shape.n_seq = 1;
  for (std::int64_t b = 0; b < batch.n_seq; ++b) {
    const auto own = [&](const Tensor& all_T) { return all_T.defined() ? all_T.slice(b * n, n) : all_T; };
    const Tensor &k_SGN = cached_k_SGN_[static_cast<std::size_t>(b)],
                 &v_SGN = cached_v_SGN_[static_cast<std::size_t>(b)];
    ops::copy(k_SGN.slice(first, n), own(saved_.k_TGN), ctx);
    ops::copy(v_SGN.slice(first, n), own(v_columns(saved_.qkv_TM)), ctx);
    ops::attention_forward(own(saved_.attn_out_THN), own(saved_.lse_TH), own(saved_.q_THN),
                           k_SGN.slice(0, first + n), v_SGN.slice(0, first + n), own(batch.kv_begin_T), shape,
                           own(entropy_.entropy_TH()), ctx);
  }
}

void GqaLayer::backward(Tensor dx_TD, Tensor dout_TD, Tensor x_TD, const RopeTable& rope, const Batch& batch,
                        Context& ctx) {
  const auto& [qkv_TM, q_THN, k_TGN, q_rstd_TH, k_rstd_TG, lse_TH, attn_out_THN] = saved_;
  ScratchScope scope(ctx.scratch);
  const auto scratch_like = [&](const Tensor& tensor) {
    return ctx.scratch.take(tensor.shape(), tensor.dtype());
  };
  const Tensor dattn_out_THN = scratch_like(attn_out_THN);
  const Tensor dqkv_TM = scratch_like(qkv_TM);
  const Tensor dq_THN = has_norm() ? scratch_like(q_THN) : q_columns(dqkv_TM);
  const Tensor dk_TGN = has_norm() ? scratch_like(k_TGN) : k_columns(dqkv_TM);

  if (o_bias_) ops::bias_backward(store_.grad(*o_bias_), dout_TD, ctx);
  ops::linear_backward_weight(store_.grad(o_weight_), dout_TD, attn_out_THN, ctx);
  ops::linear_backward_input(dattn_out_THN, dout_TD, store_.weight(o_weight_), ops::Write::set, ctx);
  ops::attention_backward(dq_THN, dk_TGN, v_columns(dqkv_TM), dattn_out_THN, attn_out_THN, lse_TH, q_THN, k_TGN,
                          v_columns(qkv_TM), batch.kv_begin_T, shape_of(batch), ctx);
  if (qk_norm_ == config::QkNorm::head) {
    ops::qk_norm_rope_backward(dqkv_TM, {store_.grad(q_norm_), store_.grad(k_norm_)}, {dq_THN, dk_TGN}, qkv_TM,
                               {q_rstd_TH, k_rstd_TG}, {store_.weight(q_norm_), store_.weight(k_norm_)},
                               rope.cos_SP, rope.sin_SP, batch.seq_len, ctx);
  } else {
    ops::rope_backward(dk_TGN, rope.cos_SP, rope.sin_SP, batch.seq_len, {width_}, ctx);
    ops::rope_backward(dq_THN, rope.cos_SP, rope.sin_SP, batch.seq_len, {width_}, ctx);
    if (qk_norm_ == config::QkNorm::projection) {
      ops::fill_zero(q_columns(dqkv_TM), ctx);
      ops::fill_zero(k_columns(dqkv_TM), ctx);
      ops::rmsnorm_backward(k_columns(dqkv_TM), store_.grad(k_norm_), dk_TGN, k_columns(qkv_TM), k_rstd_TG,
                            store_.weight(k_norm_), ctx);
      ops::rmsnorm_backward(q_columns(dqkv_TM), store_.grad(q_norm_), dq_THN, q_columns(qkv_TM), q_rstd_TH,
                            store_.weight(q_norm_), ctx);
    }
  }
  if (q_bias_) ops::bias_backward(store_.grad_block(*q_bias_, qkv_bias_shape()), dqkv_TM, ctx);
  ops::linear_backward_weight(store_.grad_block(q_weight_, qkv_shape()), dqkv_TM, x_TD, ctx);
  ops::linear_backward_input(dx_TD, dqkv_TM, store_.weight_block(q_weight_, qkv_shape()), ops::Write::set, ctx);
}

AttentionCost GqaLayer::cost() const {
  const auto projections = static_cast<double>((2 * heads_ + 2 * kv_heads_) * width_ * hidden_);
  return {.per_token = 2 * projections, .per_key = static_cast<double>(2 * heads_ * (width_ + width_))};
}

void GqaLayer::visit_saved(const router::TensorVisitor& visit) const {
  visit("self_attn.qkv_proj output", saved_.qkv_TM);
  if (has_norm()) {
    visit("self_attn.q_norm output", saved_.q_THN);
    visit("self_attn.k_norm output", saved_.k_TGN);
  }
  visit("self_attn attention output", saved_.attn_out_THN);
}

}  // namespace switchyard::model
