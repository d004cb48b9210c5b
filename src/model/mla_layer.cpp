#include "model/mla_layer.h"

#include <cmath>

#include "model/names.h"
#include "ops/attention.h"
#include "ops/elementwise.h"
#include "ops/linear.h"
#include "ops/mla.h"
#include "ops/norm.h"
#include "ops/rope.h"

namespace switchyard::model {

namespace {

constexpr double kLatentNormEps = 1e-6;  // of the two inner norms, whatever rms_norm_eps is

}  // namespace

MlaLayer::MlaLayer(const config::Model& model, std::int64_t layer, ParameterStore& store)
    : hidden_(model.hidden_size),
      q_latent_(model.mla->q_lora_rank),
      latent_(model.mla->kv_lora_rank),
      widths_{model.num_attention_heads, model.mla->qk_nope_head_dim, model.mla->qk_rope_head_dim,
              model.mla->v_head_dim},
      pairs_(model.rope.interleaved ? ops::RopePairs::neighbours : ops::RopePairs::halves),
      softmax_scale_(model.softmax_scale_factor / std::sqrt(static_cast<double>(widths_.nope + widths_.rope))),
      store_(store) {
  const std::string prefix = layer_prefix(layer) + "self_attn.";
  const auto matrix = [&](const char* name, std::int64_t rows, std::int64_t columns) {
    store.begin_group();
    return store.add({.name = prefix + name,
                      .shape = Shape{rows, columns},
                      .init = Init::normal,
                      .init_std = model.initializer_range});
  };
  const auto vector = [&](const char* name, std::int64_t size, Init init) {
    store.begin_group();
    return store.add({.name = prefix + name, .shape = Shape{size}, .init = init, .weight_decay = false});
  };
  const auto bias = [&](const char* name, std::int64_t size) {
    return model.attention_bias ? std::optional(vector(name, size, Init::zeros)) : std::nullopt;
  };
  const std::int64_t q_width = widths_.heads * (widths_.nope + widths_.rope);
  if (q_latent_ == 0) {
    q_ = matrix("q_proj.weight", q_width, hidden_);
  } else {
    q_ = matrix("q_a_proj.weight", q_latent_, hidden_);
    q_a_bias_ = bias("q_a_proj.bias", q_latent_);
    q_a_norm_ = vector("q_a_layernorm.weight", q_latent_, Init::ones);
    q_b_ = matrix("q_b_proj.weight", q_width, q_latent_);
  }
  kv_a_ = matrix("kv_a_proj_with_mqa.weight", latent_ + widths_.rope, hidden_);
  kv_a_bias_ = bias("kv_a_proj_with_mqa.bias", latent_ + widths_.rope);
  kv_a_norm_ = vector("kv_a_layernorm.weight", latent_, Init::ones);
  kv_b_ = matrix("kv_b_proj.weight", widths_.heads * (widths_.nope + widths_.value), latent_);
  o_ = matrix("o_proj.weight", hidden_, widths_.heads * widths_.value);
  o_bias_ = bias("o_proj.bias", hidden_);
}

void MlaLayer::plan(Arena& arena, std::int64_t n_tokens, DType dtype) {
  const auto rows = [&](std::int64_t columns) { return arena.take(Shape{n_tokens, columns}, dtype); };
  const auto statistic = [&](std::int64_t columns) {
    return arena.take(Shape{n_tokens, columns}, accumulation_dtype(dtype));
  };
  const auto [heads, nope, rope, value] = widths_;
  if (q_latent_ > 0) {
    saved_.q_latent_TQ = rows(q_latent_);
    saved_.q_normed_TQ = rows(q_latent_);
    saved_.q_rstd_T1 = statistic(1);
  }
  saved_.q_THN = rows(heads * (nope + rope));
  saved_.latent_TM = rows(latent_ + rope);
  saved_.kv_normed_TC = rows(latent_);
  saved_.kv_rstd_T1 = statistic(1);
  saved_.kv_TM = rows(heads * (nope + value));
  saved_.k_THN = rows(heads * (nope + rope));
  saved_.v_THV = rows(heads * value);
  saved_.lse_TH = statistic(heads);
  entropy_.plan(arena, n_tokens, heads, dtype);
  saved_.attn_out_THV = rows(heads * value);
}

void MlaLayer::plan_cache(Arena& arena, std::int64_t n_seq, std::int64_t positions, DType dtype) {
  cached_SM_.clear();
  for (std::int64_t b = 0; b < n_seq; ++b)
    cached_SM_.push_back(arena.take(Shape{positions, latent_ + widths_.rope}, dtype));
}

ops::AttentionShape MlaLayer::shape_of(const Batch& batch) const {
  return {batch.n_seq,   batch.seq_len, widths_.heads, widths_.heads, widths_.nope + widths_.rope,
          widths_.value, softmax_scale_};
}

void MlaLayer::forward(Tensor out_TD, Tensor residual_TD, Tensor x_TD, const RopeTable& rope,
                       const Batch& batch, Context& ctx) {
  const Saved& s = saved_;
  const auto weight = [&](std::size_t row) { return store_.weight(row); };
  if (q_latent_ == 0) {
    ops::linear_forward(s.q_THN, x_TD, weight(q_), ops::Write::set, ctx);
  } else {
    ops::linear_forward(s.q_latent_TQ, x_TD, weight(q_), ops::Write::set, ctx);
    if (q_a_bias_) ops::bias_forward(s.q_latent_TQ, weight(*q_a_bias_), ctx);
    ops::rmsnorm_forward(s.q_normed_TQ, s.q_rstd_T1, s.q_latent_TQ, weight(q_a_norm_), kLatentNormEps, ctx);
    ops::linear_forward(s.q_THN, s.q_normed_TQ, weight(q_b_), ops::Write::set, ctx);
  }
  ops::linear_forward(s.latent_TM, x_TD, weight(kv_a_), ops::Write::set, ctx);
  if (kv_a_bias_) ops::bias_forward(s.latent_TM, weight(*kv_a_bias_), ctx);
  ops::rmsnorm_forward(s.kv_normed_TC, s.kv_rstd_T1, latent_columns(s.latent_TM), weight(kv_a_norm_),
                       kLatentNormEps, ctx);
  ops::rope_forward(s.q_THN, rope.cos_SP, rope.sin_SP, batch.seq_len, rope_of(widths_.nope + widths_.rope),
                    ctx);
  ops::rope_forward(rope_columns(s.latent_TM), rope.cos_SP, rope.sin_SP, batch.seq_len, rope_of(widths_.rope),
                    ctx);
  const std::int64_t n = batch.seq_len;
  for (std::int64_t b = 0; batch.n_past && b < batch.n_seq; ++b) {
    const Tensor new_TM = cached_SM_[static_cast<std::size_t>(b)].slice(*batch.n_past, n);
    ops::copy(latent_columns(new_TM), s.kv_normed_TC.slice(b * n, n), ctx);
    ops::copy(rope_columns(new_TM), rope_columns(s.latent_TM).slice(b * n, n), ctx);
  }
  if (batch.n_past.value_or(0) > 0)
    attend_cached(batch, ctx);
  else
    attend_multiplied_out(batch, ctx);
  ops::linear_forward_add(out_TD, residual_TD, s.attn_out_THV, weight(o_), ctx);
  if (o_bias_) ops::bias_forward(out_TD, weight(*o_bias_), ctx);
}

void MlaLayer::attend_multiplied_out(const Batch& batch, Context& ctx) {
  const Saved& s = saved_;
  ops::linear_forward(s.kv_TM, s.kv_normed_TC, store_.weight(kv_b_), ops::Write::set, ctx);
  ops::mla_split_forward(s.k_THN, s.v_THV, s.kv_TM, rope_columns(s.latent_TM), widths_, ctx);
  ops::attention_forward(s.attn_out_THV, s.lse_TH, s.q_THN, s.k_THN, s.v_THV, batch.kv_begin_T, shape_of(batch),
                         entropy_.entropy_TH(), ctx);
  entropy_.finish(batch, ctx);
}

void MlaLayer::attend_cached(const Batch& batch, Context& ctx) {
  const Saved& s = saved_;
  const Tensor kv_b_MC = store_.weight(kv_b_);
  const std::int64_t n_tokens = batch.n_seq * batch.seq_len, width = latent_ + widths_.rope, n = batch.seq_len;
  ScratchScope scope(ctx.scratch);
  const Tensor q_latent_THL = ctx.scratch.take(Shape{n_tokens, widths_.heads * width}, s.q_THN.dtype());
  const Tensor attn_out_THC = ctx.scratch.take(Shape{n_tokens, widths_.heads * latent_}, s.q_THN.dtype());
  ops::mla_absorb_query(q_latent_THL, s.q_THN, kv_b_MC, widths_, ctx);
  for (std::int64_t b = 0; b < batch.n_seq; ++b) {  // each has its own past
    const auto own = [&](const Tensor& all_T) { return all_T.defined() ? all_T.slice(b * n, n) : all_T; };
    const Tensor cached_SM = cached_SM_[static_cast<std::size_t>(b)].slice(0, *batch.n_past + n);
    ops::attention_forward(own(attn_out_THC), own(s.lse_TH), own(q_latent_THL), cached_SM,
                           latent_columns(cached_SM), own(batch.kv_begin_T),
                           {.n_seq = 1,
                            .seq_len = n,
                            .n_heads = widths_.heads,
                            .n_kv_heads = 1,
                            .head_dim = width,
                            .v_head_dim = latent_,
                            .scale = softmax_scale_,
                            .n_past = *batch.n_past},
                           own(entropy_.entropy_TH()), ctx);
  }
  entropy_.finish(batch, ctx);
  ops::mla_expand_value(s.attn_out_THV, attn_out_THC, kv_b_MC, widths_, ctx);
}

void MlaLayer::backward(Tensor dx_TD, Tensor dout_TD, Tensor x_TD, const RopeTable& rope, const Batch& batch,
                        Context& ctx) {
  const Saved& s = saved_;
  const auto weight = [&](std::size_t row) { return store_.weight(row); };
  const auto grad = [&](std::size_t row) { return store_.grad(row); };
  ScratchScope scope(ctx.scratch);
  const auto scratch_like = [&](const Tensor& tensor) {
    return ctx.scratch.take(tensor.shape(), tensor.dtype());
  };
  const Tensor dattn_out_THV = scratch_like(s.attn_out_THV);
  const Tensor dq_THN = scratch_like(s.q_THN), dk_THN = scratch_like(s.k_THN), dv_THV = scratch_like(s.v_THV);
  const Tensor dkv_TM = scratch_like(s.kv_TM);
  const Tensor dkv_normed_TC = scratch_like(s.kv_normed_TC);
  const Tensor dlatent_TM = scratch_like(s.latent_TM);

  if (o_bias_) ops::bias_backward(grad(*o_bias_), dout_TD, ctx);
  ops::linear_backward_weight(grad(o_), dout_TD, s.attn_out_THV, ctx);
  ops::linear_backward_input(dattn_out_THV, dout_TD, weight(o_), ops::Write::set, ctx);
  ops::attention_backward(dq_THN, dk_THN, dv_THV, dattn_out_THV, s.attn_out_THV, s.lse_TH, s.q_THN, s.k_THN,
                          s.v_THV, batch.kv_begin_T, shape_of(batch), ctx);
  ops::fill_zero(dlatent_TM, ctx);  // the norm's gradient is added
  ops::mla_split_backward(dkv_TM, rope_columns(dlatent_TM), dk_THN, dv_THV, widths_, ctx);
  ops::rope_backward(rope_columns(dlatent_TM), rope.cos_SP, rope.sin_SP, batch.seq_len, rope_of(widths_.rope),
                     ctx);
  ops::rope_backward(dq_THN, rope.cos_SP, rope.sin_SP, batch.seq_len, rope_of(widths_.nope + widths_.rope),
                     ctx);

  ops::linear_backward_weight(grad(kv_b_), dkv_TM, s.kv_normed_TC, ctx);
  ops::linear_backward_input(dkv_normed_TC, dkv_TM, weight(kv_b_), ops::Write::set, ctx);
  ops::rmsnorm_backward(latent_columns(dlatent_TM), grad(kv_a_norm_), dkv_normed_TC,
                        latent_columns(s.latent_TM), s.kv_rstd_T1, weight(kv_a_norm_), ctx);
  if (kv_a_bias_) ops::bias_backward(grad(*kv_a_bias_), dlatent_TM, ctx);
  ops::linear_backward_weight(grad(kv_a_), dlatent_TM, x_TD, ctx);
  ops::linear_backward_input(dx_TD, dlatent_TM, weight(kv_a_), ops::Write::set, ctx);

  if (q_latent_ == 0) {
    ops::linear_backward_weight(grad(q_), dq_THN, x_TD, ctx);
    ops::linear_backward_input(dx_TD, dq_THN, weight(q_), ops::Write::add, ctx);
    return;
  }
  const Tensor dq_normed_TQ = scratch_like(s.q_normed_TQ), dq_latent_TQ = scratch_like(s.q_latent_TQ);
  ops::linear_backward_weight(grad(q_b_), dq_THN, s.q_normed_TQ, ctx);
  ops::linear_backward_input(dq_normed_TQ, dq_THN, weight(q_b_), ops::Write::set, ctx);
  ops::fill_zero(dq_latent_TQ, ctx);
  ops::rmsnorm_backward(dq_latent_TQ, grad(q_a_norm_), dq_normed_TQ, s.q_latent_TQ, s.q_rstd_T1,
                        weight(q_a_norm_), ctx);
  if (q_a_bias_) ops::bias_backward(grad(*q_a_bias_), dq_latent_TQ, ctx);
  ops::linear_backward_weight(grad(q_), dq_latent_TQ, x_TD, ctx);
  ops::linear_backward_input(dx_TD, dq_latent_TQ, weight(q_), ops::Write::add, ctx);
}

AttentionCost MlaLayer::cost() const {
  const auto values = [&](std::size_t row) { return static_cast<double>(store_.rows()[row].shape.numel()); };
  const double queries = values(q_) + (q_latent_ > 0 ? values(q_b_) : 0);
  const std::int64_t widths = widths_.nope + widths_.rope + widths_.value;
  return {.per_token = 2 * (queries + values(kv_a_) + values(kv_b_) + values(o_)),
          .per_key = static_cast<double>(2 * widths_.heads * widths)};
}

void MlaLayer::visit_saved(const router::TensorVisitor& visit) const {
  if (q_latent_ > 0) visit("self_attn.q_a_layernorm output", saved_.q_normed_TQ);
  visit("self_attn query", saved_.q_THN);
  visit("self_attn.kv_a_proj_with_mqa output", saved_.latent_TM);
  visit("self_attn.kv_b_proj output", saved_.kv_TM);
  visit("self_attn attention output", saved_.attn_out_THV);
}

}  // namespace switchyard::model
