#include "model/transformer.h"

#include <algorithm>

#include "model/dense_layer.h"
#include "model/gqa_layer.h"
#include "model/mla_layer.h"
#include "model/moe_layer.h"
#include "model/names.h"
#include "model/rope_frequencies.h"
#include "ops/classifier.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/linear.h"
#include "ops/rmsnorm.h"
#include "ops/rope.h"

namespace switchyard::model {

Transformer::Transformer(const config::Model& model, const config::Router& router, DType dtype, bool training)
    : config_(model), dtype_(dtype), training_(training) {
  const auto matrix = [&](const char* name) {
    parameters_.begin_group();
    return parameters_.add({.name = name,
                            .shape = Shape{model.vocab_size, model.hidden_size},
                            .init = Init::normal,
                            .init_std = model.initializer_range});
  };
  const auto norm = [&](const std::string& name) {
    parameters_.begin_group();
    return parameters_.add(
        {.name = name, .shape = Shape{model.hidden_size}, .init = Init::ones, .weight_decay = false});
  };
  embedding_ = matrix("model.embed_tokens.weight");
  for (std::int64_t l = 0; l < model.num_hidden_layers; ++l) {
    Block block{};
    block.attention_norm = norm(layer_prefix(l) + "input_layernorm.weight");
    if (model.mla)
      block.attention = std::make_unique<MlaLayer>(model, l, parameters_);
    else
      block.attention = std::make_unique<GqaLayer>(model, l, parameters_);
    block.ffn_norm = norm(layer_prefix(l) + "post_attention_layernorm.weight");
    if (model.is_moe_layer[static_cast<std::size_t>(l)]) {
      block.ffn = std::make_unique<MoeLayer>(model, router, l, parameters_);
      if (block.ffn->router()->needs_attention_entropy()) block.attention->entropy().want();
      routed_blocks_.push_back(l);
    } else {
      block.ffn = std::make_unique<DenseLayer>(layer_prefix(l) + "mlp.", model.hidden_size,
                                               model.intermediate_size, model.initializer_range, parameters_);
    }
    blocks_.push_back(std::move(block));
  }
  final_norm_ = norm("model.norm.weight");
  head_ = model.tie_word_embeddings ? embedding_ : matrix("lm_head.weight");
  loss_gradient_L_.resize(routed_blocks_.size());
}

void Transformer::plan(std::int64_t n_seq, std::int64_t seq_len, Context& ctx) {
  Arena measure = Arena::measuring();
  lay_out(measure, n_seq, seq_len);
  arena_ = std::make_unique<Arena>(measure.peak(), "the model's activations");
  lay_out(*arena_, n_seq, seq_len);
  fill_rope_table(ctx);
}

void Transformer::fill_rope_table(Context& ctx) {
  std::vector<double> frequency_P = rope_frequencies(config_.rope, 2 * rope_.cos_SP.dim(1));
  ops::rope_table(rope_.cos_SP, rope_.sin_SP,
                  Tensor(frequency_P.data(), Shape{rope_.cos_SP.dim(1)}, DType::f64),
                  config_.rope.attention_factor, ctx);
}

void Transformer::lay_out(Arena& arena, std::int64_t n_seq, std::int64_t seq_len) {
  const std::int64_t n_tokens = n_seq * seq_len, D = config_.hidden_size;
  const auto rows = [&](std::int64_t columns) { return arena.take(Shape{n_tokens, columns}, dtype_); };
  const std::int64_t pairs = (config_.mla ? config_.mla->qk_rope_head_dim : config_.head_dim) / 2;
  rope_ = {arena.take(Shape{seq_len, pairs}, dtype_), arena.take(Shape{seq_len, pairs}, dtype_)};
  for (std::size_t l = 0; l < routed_blocks_.size(); ++l)
    loss_gradient_L_[l] = {arena.take(Shape{n_seq, config_.num_experts}, DType::f64), 0.0};
  out_TD_ = rows(D);
  final_TD_ = rows(D);
  final_rstd_T1_ = rows(1);
  for (Block& block : blocks_) block.ffn->plan_sums(arena, n_seq);

  const std::int64_t mark = arena.used();
  Tensor in_TD;
  for (Block& block : blocks_) {
    if (!training_)
      arena.rewind(mark);  // nothing is kept for a backward pass: all blocks share one block's memory
    block.in_TD = training_ || !in_TD.defined() ? rows(D) : in_TD;
    if (!training_ && in_TD.defined()) rows(D);  // step over the shared stream
    in_TD = block.in_TD;
    block.attention_in_TD = rows(D);
    block.attention_rstd_T1 = rows(1);
    block.attention->plan(arena, n_tokens, dtype_);
    block.mid_TD = rows(D);
    block.ffn_in_TD = rows(D);
    block.ffn_rstd_T1 = rows(1);
    block.ffn->plan(arena, n_seq, seq_len, dtype_);
  }
}

void Transformer::poison_activations(Context& ctx) {
  arena_->poison();
  fill_rope_table(ctx);
}

void Transformer::check_batch(const Batch& batch) const {
  SY_CHECK(arena_ && batch.seq_len == rope_.cos_SP.rows() && batch.n_seq * batch.seq_len == out_TD_.rows(),
           "a batch of {} x {} tokens was not planned", batch.n_seq, batch.seq_len);
  const Shape shape{batch.n_seq * batch.seq_len};
  SY_CHECK(
      batch.token_T.shape() == shape && batch.target_T.shape() == shape && batch.kv_begin_T.shape() == shape,
      "token_T, target_T and kv_begin_T are not all {}", shape.to_string());
}

void Transformer::forward(const Batch& batch, Context& ctx) {
  check_batch(batch);
  const double eps = config_.rms_norm_eps;
  const auto value = [&](std::size_t row) { return parameters_.value(row); };
  ops::embedding_forward(blocks_.front().in_TD, batch.token_T, value(embedding_), ctx);
  for (std::size_t l = 0; l < blocks_.size(); ++l) {
    Block& block = blocks_[l];
    ops::rmsnorm_forward(block.attention_in_TD, block.attention_rstd_T1, block.in_TD,
                         value(block.attention_norm), eps, ctx);
    ops::copy(block.mid_TD, block.in_TD, ctx);
    block.attention->forward(block.mid_TD, block.attention_in_TD, rope_, batch, ctx);

    const Tensor next_TD = l + 1 < blocks_.size() ? blocks_[l + 1].in_TD : out_TD_;
    ops::rmsnorm_forward(block.ffn_in_TD, block.ffn_rstd_T1, block.mid_TD, value(block.ffn_norm), eps, ctx);
    ops::copy(next_TD, block.mid_TD, ctx);
    Batch seen = batch;
    seen.attention_entropy_T = block.attention->entropy().entropy_T();
    block.ffn->forward(next_TD, block.ffn_in_TD, seen, ctx);
  }
  ops::rmsnorm_forward(final_TD_, final_rstd_T1_, out_TD_, value(final_norm_), eps, ctx);
}

void Transformer::loss(Tensor loss_T, const Batch& batch, Context& ctx) {
  ops::classifier_forward(loss_T, final_TD_, parameters_.value(head_), batch.target_T, ctx);
}

void Transformer::loss_and_backward(Tensor loss_T, const Batch& batch, double dloss, Context& ctx) {
  check_batch(batch);
  SY_CHECK(training_, "this model was made for evaluation");
  const auto value = [&](std::size_t row) { return parameters_.value(row); };
  const auto grad = [&](std::size_t row) { return parameters_.grad(row); };
  ScratchScope scope(ctx.scratch);
  const Tensor dstream_TD = ctx.scratch.take(out_TD_.shape(), dtype_);  // gradient of the residual stream
  const Tensor dnormed_TD = ctx.scratch.take(out_TD_.shape(), dtype_);

  ops::classifier_forward_backward(loss_T, dnormed_TD, grad(head_), final_TD_, value(head_), batch.target_T,
                                   dloss, ctx);
  ops::fill_zero(dstream_TD, ctx);
  ops::rmsnorm_backward(dstream_TD, grad(final_norm_), dnormed_TD, out_TD_, final_rstd_T1_, value(final_norm_),
                        ctx);
  std::size_t router = routed_blocks_.size();
  for (std::size_t l = blocks_.size(); l-- > 0;) {
    Block& block = blocks_[l];
    const router::RoutingLossGradient* loss_gradient =
        block.ffn->router() ? &loss_gradient_L_[--router] : nullptr;
    block.ffn->backward(dnormed_TD, dstream_TD, block.ffn_in_TD, batch, loss_gradient, ctx);
    ops::rmsnorm_backward(dstream_TD, grad(block.ffn_norm), dnormed_TD, block.mid_TD, block.ffn_rstd_T1,
                          value(block.ffn_norm), ctx);

    block.attention->backward(dnormed_TD, dstream_TD, block.attention_in_TD, rope_, batch, ctx);
    ops::rmsnorm_backward(dstream_TD, grad(block.attention_norm), dnormed_TD, block.in_TD,
                          block.attention_rstd_T1, value(block.attention_norm), ctx);
  }
  ops::embedding_backward(grad(embedding_), dstream_TD, batch.token_T, ctx);
}

void Transformer::logits(Tensor logits_TV, Context& ctx) const {
  ops::linear_forward(logits_TV, final_TD_, parameters_.value(head_), ops::Write::set, ctx);
}

void Transformer::after_step(std::span<const double> count_LE, std::span<const double> statistics,
                             Context& ctx) {
  const auto E = static_cast<std::size_t>(config_.num_experts);
  SY_CHECK(count_LE.size() == routed_blocks_.size() * E, "{} counts for {} layers of {} experts",
           count_LE.size(), routed_blocks_.size(), E);
  const auto statistics_L = by_router(statistics);
  for (std::size_t l = 0; l < routed_blocks_.size(); ++l)
    router_of(routed_blocks_[l]).after_step(count_LE.subspan(l * E, E), statistics_L[l], ctx);
}

std::vector<std::span<const double>> Transformer::by_router(std::span<const double> statistics) const {
  std::vector<std::span<const double>> parts;
  std::size_t first = 0;
  for (const std::int64_t l : routed_blocks_) {
    const std::size_t size = router_of(l).statistics().size();
    SY_CHECK(first + size <= statistics.size(), "{} statistics do not reach for {} routers", statistics.size(),
             routed_blocks_.size());
    parts.push_back(statistics.subspan(first, size));
    first += size;
  }
  SY_CHECK(first == statistics.size(), "{} statistics, expected {}", statistics.size(), first);
  return parts;
}

std::vector<double> Transformer::routing_statistics() const {
  std::vector<double> all;
  for (const std::int64_t l : routed_blocks_) {
    const auto part = router_of(l).statistics();
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

bool Transformer::needs_statistics_first() const {
  return std::any_of(routed_blocks_.begin(), routed_blocks_.end(),
                     [&](std::int64_t l) { return router_of(l).needs_statistics_first(); });
}

void Transformer::set_statistics(std::span<const double> statistics) {
  const auto statistics_L = by_router(statistics);
  for (std::size_t l = 0; l < routed_blocks_.size(); ++l) loss_gradient_L_[l].statistics = statistics_L[l];
}

double Transformer::own_losses() const {
  double sum = 0;
  for (std::size_t l = 0; l < routed_blocks_.size(); ++l)
    sum += router_of(routed_blocks_[l]).own_loss(loss_gradient_L_[l]);
  return sum;
}

std::vector<router::RoutingSums> Transformer::routing_sums() const {
  std::vector<router::RoutingSums> sums;
  for (const std::int64_t l : routed_blocks_) sums.push_back(router_of(l).sums());
  return sums;
}

std::vector<router::RoutingDecision> Transformer::routing_decisions() const {
  SY_CHECK(training_, "the layers of a model made for evaluation share one memory");
  std::vector<router::RoutingDecision> decisions;
  for (const std::int64_t l : routed_blocks_) decisions.push_back(router_of(l).decision());
  return decisions;
}

void Transformer::visit_activations(const ActivationVisitor& visit) const {
  visit(-1, "model.embed_tokens output", blocks_.front().in_TD);
  for (std::size_t l = 0; l < blocks_.size(); ++l) {
    const Block& block = blocks_[l];
    const auto layer = static_cast<std::int64_t>(l);
    const auto of_layer = [&](const std::string& name, const Tensor& tensor) { visit(layer, name, tensor); };
    of_layer("input_layernorm output", block.attention_in_TD);
    block.attention->visit_saved(of_layer);
    of_layer("residual stream after self_attn", block.mid_TD);
    of_layer("post_attention_layernorm output", block.ffn_in_TD);
    block.ffn->visit_saved(of_layer);
    of_layer("residual stream after mlp", l + 1 < blocks_.size() ? blocks_[l + 1].in_TD : out_TD_);
  }
  visit(-1, "model.norm output", final_TD_);
}

}  // namespace switchyard::model
