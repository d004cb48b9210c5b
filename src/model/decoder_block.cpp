#include "model/decoder_block.h"

#include "model/dense_layer.h"
#include "model/gqa_layer.h"
#include "model/mla_layer.h"
#include "model/moe_layer.h"
#include "model/names.h"
#include "ops/norm.h"

namespace switchyard::model {

DecoderBlock::DecoderBlock(const config::Model& model, const config::Router& router, std::int64_t layer,
                           const config::LayerSpec& spec, const ExpertRanks& ranks, ParameterStore& store)
    : eps_(model.rms_norm_eps), store_(store) {
  const auto norm = [&](const char* name) {
    store.begin_group();
    return store.add({.name = layer_prefix(layer) + name,
                      .shape = Shape{model.hidden_size},
                      .init = Init::ones,
                      .weight_decay = false});
  };
  attention_norm_ = norm("input_layernorm.weight");
  if (spec.attention == config::AttentionType::mla)
    attention_ = std::make_unique<MlaLayer>(model, layer, store);
  else
    attention_ = std::make_unique<GqaLayer>(model, layer, store);
  ffn_norm_ = norm("post_attention_layernorm.weight");
  if (spec.moe)
    ffn_ = std::make_unique<MoeLayer>(model, router, layer, ranks, store);
  else
    ffn_ = std::make_unique<DenseLayer>(layer_prefix(layer) + "mlp.", model.hidden_size,
                                        model.intermediate_size, model.initializer_range, store);
  if (spec.moe && ffn_->router()->router().needs_attention_entropy()) attention_->entropy().enable();
}

void DecoderBlock::plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype,
                        config::Recompute recompute) {
  const std::int64_t n_tokens = n_seq * seq_len, D = store_.rows()[attention_norm_].shape.numel();
  const auto rows = [&](std::int64_t columns) { return arena.take(Shape{n_tokens, columns}, dtype); };
  const auto statistic = [&] { return arena.take(Shape{n_tokens, 1}, accumulation_dtype(dtype)); };
  saved_.attention_in_TD = rows(D);
  saved_.attention_rstd_T1 = statistic();
  attention_->plan(arena, n_tokens, dtype);
  saved_.mid_TD = rows(D);
  saved_.ffn_in_TD = rows(D);
  saved_.ffn_rstd_T1 = statistic();
  ffn_->plan(arena, n_seq, seq_len, dtype, recompute != config::Recompute::swiglu);
}

void DecoderBlock::forward(Tensor out_TD, Tensor in_TD, const RopeTable& rope, const Batch& batch,
                           Context& ctx) {
  const LayerProducts products(ctx);
  const auto& [attention_in_TD, attention_rstd_T1, mid_TD, ffn_in_TD, ffn_rstd_T1] = saved_;
  ops::rmsnorm_forward(attention_in_TD, attention_rstd_T1, in_TD, store_.weight(attention_norm_), eps_, ctx);
  attention_->forward(mid_TD, in_TD, attention_in_TD, rope, batch, ctx);

  ops::rmsnorm_forward(ffn_in_TD, ffn_rstd_T1, mid_TD, store_.weight(ffn_norm_), eps_, ctx);
  Batch seen = batch;
  seen.attention_entropy_T = attention_->entropy().entropy_T();
  ffn_->forward(out_TD, mid_TD, ffn_in_TD, seen, ctx);
}

void DecoderBlock::backward(Tensor dstream_TD, Tensor in_TD, const RopeTable& rope, const Batch& batch,
                            Context& ctx, const std::function<void()>& before_attention) {
  const LayerProducts products(ctx);
  const auto& [attention_in_TD, attention_rstd_T1, mid_TD, ffn_in_TD, ffn_rstd_T1] = saved_;
  ScratchScope scope(ctx.scratch);
  const Tensor dnormed_TD = ctx.scratch.take(dstream_TD.shape(), dstream_TD.dtype());
  ffn_->backward(dnormed_TD, dstream_TD, ffn_in_TD, batch, ctx);
  ops::rmsnorm_backward(dstream_TD, store_.grad(ffn_norm_), dnormed_TD, mid_TD, ffn_rstd_T1,
                        store_.weight(ffn_norm_), ctx);

  if (before_attention) before_attention();
  attention_->backward(dnormed_TD, dstream_TD, attention_in_TD, rope, batch, ctx);
  ops::rmsnorm_backward(dstream_TD, store_.grad(attention_norm_), dnormed_TD, in_TD, attention_rstd_T1,
                        store_.weight(attention_norm_), ctx);
}

void DecoderBlock::visit_saved(const router::TensorVisitor& visit) const {
  visit("input_layernorm output", saved_.attention_in_TD);
  attention_->visit_saved(visit);
  visit("residual stream after self_attn", saved_.mid_TD);
  visit("post_attention_layernorm output", saved_.ffn_in_TD);
  ffn_->visit_saved(visit);
}

}  // namespace switchyard::model
