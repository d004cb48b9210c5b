#include "model/transformer.h"

#include "core/progress.h"
#include "model/rope_frequencies.h"
#include "ops/classifier.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/rope.h"

namespace switchyard::model {

namespace {

// Where memory alone is measured nothing has been reached.
void mark_place(const Context& ctx, const char* place, std::size_t index = SIZE_MAX) {
  if (!ctx.measures()) mark(place, index == SIZE_MAX ? -1 : static_cast<std::int64_t>(index));
}

}  // namespace

DType dtype_of(config::ComputeType type, Device device) {
  return type != config::ComputeType::float32 && device == Device::cuda ? DType::bf16 : DType::f32;
}

MatmulType matmul_type_of(config::ComputeType type) {
  return type == config::ComputeType::float32 ? MatmulType::f32 : MatmulType::bf16;
}

Transformer::Transformer(const config::Model& model, const config::Router& router, DType dtype, bool training)
    : config_(model), dtype_(dtype), training_(training) {
  // Multi-token prediction and tied weights come back to them, so that their gradients are never done sooner.
  const bool are_layers = !model.tie_word_embeddings && model.num_nextn_predict_layers == 0;
  const auto matrix = [&](const char* name, std::int64_t& layer) {
    if (are_layers) layer = parameters_.begin_layer();
    parameters_.begin_group();
    return parameters_.add({.name = name,
                            .shape = Shape{model.vocab_size, model.hidden_size},
                            .init = Init::normal,
                            .init_std = model.initializer_range});
  };
  embedding_ = matrix("model.embed_tokens.weight", layers_.embedding);
  std::vector<router::RoutedLayer*> routed;
  for (std::int64_t l = 0; l < model.num_hidden_layers; ++l) {
    const std::int64_t layer = parameters_.begin_layer();
    if (l == 0) layers_.first_block = layer;
    blocks_.emplace_back(model, router, l, model.layers[static_cast<std::size_t>(l)], expert_ranks_,
                         parameters_);
    if (blocks_.back().router() != nullptr) routed.push_back(blocks_.back().router());
  }
  parameters_.end_layers();
  parameters_.begin_group();
  final_norm_ = parameters_.add({.name = "model.norm.weight",
                                 .shape = Shape{model.hidden_size},
                                 .init = Init::ones,
                                 .weight_decay = false});
  head_ = model.tie_word_embeddings ? embedding_ : matrix("lm_head.weight", layers_.head);
  parameters_.end_layers();
  if (model.num_nextn_predict_layers > 0)
    mtp_.emplace(model, router, embedding_, head_, expert_ranks_, parameters_);
  for (std::int64_t depth = 0; depth < n_mtp_depths(); ++depth)
    if (mtp_->router(depth)) routed.push_back(mtp_->router(depth));
  routing_.emplace(std::move(routed), router, model);
  parameters_.place({});
}

void Transformer::share_experts(const parallel::Group& group, parallel::TokenExchange::Way way, double room,
                                bool overlap) {
  SY_CHECK(!arena_, "experts are shared before there are activations");
  SY_CHECK(config_.num_experts % group.size() == 0, "{} ranks do not divide {} experts", group.size(),
           config_.num_experts);
  SY_CHECK(room >= 1, "room for {} times an even load", room);
  expert_ranks_ = {.group = &group, .way = way, .room = room, .overlap = overlap};
}

void Transformer::set_rounds(std::int64_t n) {
  SY_CHECK(n >= 1 && (n == 1 || expert_ranks_.share()), "{} rounds", n);
  expert_ranks_.n_rounds = n;
}

void Transformer::round_weights(Context& ctx) {
  if (parameters_.has_rounded_weights()) ops::copy(parameters_.weights(), parameters_.values(), ctx);
}

std::int64_t Transformer::measure_activations(std::int64_t n_seq, std::int64_t seq_len,
                                              config::Recompute recompute) {
  recompute_ = recompute;
  Arena measure = Arena::measuring();
  lay_out_positions(measure, seq_len);
  lay_out(measure, n_seq, seq_len);
  if (!expert_ranks_.has_windows()) return measure.peak();
  return measure.peak() +
         parallel::TokenWindows::bytes(expert_ranks_.most_tokens(n_seq * seq_len), config_.hidden_size, dtype_);
}

Transformer::ScratchBytes Transformer::measure_scratch(std::int64_t n_seq, std::int64_t seq_len,
                                                       MatmulType type, bool e4m3_layers) {
  const std::int64_t T = n_seq * seq_len, K = n_mtp_depths();
  parameters_.pretend(accumulation_dtype(dtype_), dtype_, training_);
  Context ctx = Context::measuring();
  ctx.matmul = type;
  ctx.e4m3_layers = e4m3_layers;
  const auto nothing = [](Shape shape, DType dtype) { return Tensor(nullptr, shape, dtype); };
  const Batch batch{.token_T = nothing({T}, DType::i32),
                    .target_T = nothing({T}, DType::i32),
                    .kv_begin_T = nothing({T}, DType::i32),
                    .n_seq = n_seq,
                    .seq_len = seq_len,
                    .training = true,
                    .rng_offset_2 = nothing({2}, DType::i32),
                    .tokens_B = nothing({n_seq}, DType::i32)};
  forward(batch, ctx);
  forward_mtp(batch, ctx);
  routing_->add_micro_batch(ctx);
  routing_->add_losses(nothing({3}, DType::f64), batch.tokens_B, {.n_tokens = T, .n_sequences = n_seq}, ctx);
  const std::vector<double> dloss_K(static_cast<std::size_t>(K));
  const DType exact = accumulation_dtype(dtype_);
  const MtpLoss mtp{nothing({K, T}, exact), dloss_K};
  loss_and_backward(nothing({T}, exact), batch, 1, ctx, &mtp);
  routing_->after_step(ctx);
  return {ctx.scratch.reserved(), ctx.scratch.peak()};
}

void Transformer::plan(std::int64_t n_seq, std::int64_t seq_len, Context& ctx, config::Recompute recompute) {
  recompute_ = recompute;
  if (expert_ranks_.has_windows())
    expert_ranks_.windows = std::make_shared<const parallel::TokenWindows>(
        *expert_ranks_.group, expert_ranks_.most_tokens(n_seq * seq_len), config_.hidden_size, dtype_, ctx);
  allocate_activations(
      [&](Arena& arena) {
        lay_out_positions(arena, seq_len);
        lay_out(arena, n_seq, seq_len);
      },
      ctx);
}

void Transformer::plan_generation(const Generation& generation, Context& ctx) {
  SY_CHECK(!training_, "this model was made for training");
  cached_sequences_ = generation.n_seq;
  allocate_activations([&](Arena& arena) { lasting_bytes_ = lay_out_generation(arena, generation); }, ctx);
}

Transformer::GenerationBytes Transformer::measure_generation(const Generation& generation) {
  Arena measure = Arena::measuring();
  const std::int64_t lasting = lay_out_generation(measure, generation);
  return {lasting, measure.peak() - lasting};
}

std::int64_t Transformer::lay_out_generation(Arena& arena, const Generation& generation) {
  lay_out_positions(arena, generation.n_positions);
  for (DecoderBlock& block : blocks_) block.plan_cache(arena, generation.n_seq, generation.n_positions, dtype_);
  const std::int64_t lasting = arena.used();
  lay_out(arena, generation.n_seq, generation.most_tokens);
  return lasting;
}

void Transformer::allocate_activations(const std::function<void(Arena&)>& lay_out_all, Context& ctx) {
  Arena measure = Arena::measuring();
  lay_out_all(measure);
  arena_ = std::make_unique<Arena>(measure.peak(), "the model's activations", ctx.device);
  lay_out_all(*arena_);
  fill_rope_table(ctx);
}

void Transformer::lay_out_positions(Arena& arena, std::int64_t n_positions) {
  const std::int64_t pairs = (config_.mla ? config_.mla->qk_rope_head_dim : config_.head_dim) / 2;
  const auto table = [&] { return arena.take(Shape{n_positions, pairs}, accumulation_dtype(dtype_)); };
  rope_ = {table(), table()};
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
  routing_->plan(arena, n_seq, training_ || observes_routing_, blocks_share_memory());
  if (expert_ranks_.share() && routing_->n_layers() > 0) {
    expert_ranks_.largest_need_1 = arena.take(Shape{1}, DType::i32);
    expert_room_ = expert_ranks_.n_rows(n_tokens, routing_->layer(0).router().n_slots(), config_.num_experts);
  }
  stream_.clear();
  for (std::size_t l = 0; l <= blocks_.size(); ++l)  // one for all where no backward pass will read them
    stream_.push_back(keeps_activations() || l == 0 ? rows(D) : stream_.front());
  final_TD_ = rows(D);
  final_rstd_T1_ = arena.take(Shape{n_tokens, 1}, accumulation_dtype(dtype_));
  if (n_mtp_depths() > 0) mtp_->plan(arena, n_seq, seq_len, dtype_, recompute_);

  const std::int64_t mark = arena.used();
  for (DecoderBlock& block : blocks_) {
    if (blocks_share_memory()) arena.rewind(mark);  // all of them share one block's
    block.plan(arena, n_seq, seq_len, dtype_, recompute_);
  }
}

void Transformer::poison_activations(Context& ctx) {
  arena_->poison();
  fill_rope_table(ctx);
}

void Transformer::check_batch(const Batch& batch, const Context& ctx) const {
  SY_CHECK((arena_ || ctx.measures()) && batch.seq_len == rope_.cos_SP.rows() &&
               batch.n_seq * batch.seq_len == final_TD_.rows(),
           "a batch of {} x {} tokens was not planned", batch.n_seq, batch.seq_len);
  const Shape shape{batch.n_seq * batch.seq_len};
  SY_CHECK(
      batch.token_T.shape() == shape && batch.target_T.shape() == shape && batch.kv_begin_T.shape() == shape,
      "token_T, target_T and kv_begin_T are not all {}", shape.to_string());
}

void Transformer::prepare(const Batch& batch, const Context& ctx) {
  if (!batch.n_past) return check_batch(batch, ctx);
  const std::int64_t first = *batch.n_past, n = batch.seq_len, T = batch.n_seq * n;
  SY_CHECK(lasting_bytes_ > 0 && batch.n_seq == cached_sequences_ && n > 0 && first >= 0 &&
               first + n <= rope_.cos_SP.rows(),
           "{} x {} tokens after {} were not planned", batch.n_seq, n, first);
  SY_CHECK(batch.token_T.shape() == Shape{T} && batch.kv_begin_T.shape() == Shape{T},
           "token_T and kv_begin_T are not both of {}", T);
  if (T == final_TD_.rows()) return;
  arena_->rewind(lasting_bytes_);  // the same memory, cut for another number of tokens
  lay_out(*arena_, batch.n_seq, n);
}

void Transformer::forward(const Batch& batch, Context& ctx) {
  prepare(batch, ctx);
  const std::int64_t first = batch.n_past.value_or(0);
  const RopeTable rope = {rope_.cos_SP.slice(first, batch.seq_len), rope_.sin_SP.slice(first, batch.seq_len)};
  ops::embedding_forward(stream_.front(), batch.token_T, parameters_.weight(embedding_), ctx);
  for (std::size_t l = 0; l < blocks_.size(); ++l) {
    mark_place(ctx, "forward of layer", l);
    blocks_[l].forward(stream_[l + 1], stream_[l], rope, batch, ctx);
  }
  ops::rmsnorm_forward(final_TD_, final_rstd_T1_, stream_.back(), parameters_.weight(final_norm_),
                       config_.rms_norm_eps, ctx);
}

void Transformer::forward_mtp(const Batch& batch, Context& ctx) {
  check_batch(batch, ctx);
  if (n_mtp_depths() > 0) mtp_->forward(final_TD_, rope_, batch, ctx);
}

void Transformer::mtp_loss(Tensor loss_KT, Context& ctx) {
  if (n_mtp_depths() > 0) mtp_->loss(loss_KT, ctx);
}

void Transformer::loss(Tensor loss_T, const Batch& batch, Context& ctx) {
  ops::classifier_forward(loss_T, final_TD_, parameters_.weight(head_), batch.target_T, ctx);
}

void Transformer::loss_and_backward(Tensor loss_T, const Batch& batch, double dloss, Context& ctx,
                                    const MtpLoss* mtp, const BackwardCalls& calls) {
  check_batch(batch, ctx);
  SY_CHECK(training_, "this model was made for evaluation");
  const auto weight = [&](std::size_t row) { return parameters_.weight(row); };
  const auto grad = [&](std::size_t row) { return parameters_.grad(row); };
  const auto with_gradient = [&](std::int64_t layer, const auto& make) {
    if (layer >= 0 && calls.begin_layer) calls.begin_layer(layer);
    make();
    if (layer >= 0 && calls.end_layer) calls.end_layer(layer);
  };
  ScratchScope scope(ctx.scratch);
  const Tensor dstream_TD = ctx.scratch.take(final_TD_.shape(), dtype_);  // gradient of the residual stream
  mark_place(ctx, "classifier");
  {
    ScratchScope of_head(ctx.scratch);
    const Tensor dfinal_TD = ctx.scratch.take(final_TD_.shape(), dtype_);
    with_gradient(layers_.head, [&] {
      ops::classifier_forward_backward(loss_T, dfinal_TD, grad(head_), final_TD_, weight(head_), batch.target_T,
                                       dloss, ctx);
    });
    if (mtp && n_mtp_depths() > 0) mtp_->loss_and_backward(dfinal_TD, *mtp, final_TD_, rope_, ctx);
    ops::fill_zero(dstream_TD, ctx);
    ops::rmsnorm_backward(dstream_TD, grad(final_norm_), dfinal_TD, stream_.back(), final_rstd_T1_,
                          weight(final_norm_), ctx);
  }
  for (std::size_t l = blocks_.size(); l-- > 0;) {
    mark_place(ctx, "backward of layer", l);
    if (blocks_share_memory() && l + 1 < blocks_.size())  // the last one's is still there
      blocks_[l].forward({}, stream_[l], rope_, batch, ctx);
    with_gradient(layers_.first_block + static_cast<std::int64_t>(l), [&] {
      blocks_[l].backward(dstream_TD, stream_[l], rope_, batch, ctx, calls.before_attention);
    });
  }
  mark_place(ctx, "backward of the embedding");
  with_gradient(layers_.embedding,
                [&] { ops::embedding_backward(grad(embedding_), dstream_TD, batch.token_T, ctx); });
}

void Transformer::logits(Tensor logits_NV, Context& ctx) const {
  const std::int64_t n = logits_NV.rows();
  ops::linear_forward(logits_NV, final_TD_.slice(final_TD_.rows() - n, n), parameters_.weight(head_),
                      ops::Write::set, ctx);
}

void Transformer::logits_of_last(Tensor logits_BV, Context& ctx) const {
  const std::int64_t B = logits_BV.rows(), D = config_.hidden_size, seq_len = final_TD_.rows() / B;
  const Tensor last_BD = final_TD_.reshape(Shape{B, seq_len * D}).columns((seq_len - 1) * D, D);
  ops::linear_forward(logits_BV, last_BD, parameters_.weight(head_), ops::Write::set, ctx);
}

void Transformer::visit_activations(const ActivationVisitor& visit) const {
  visit(-1, "model.embed_tokens output", stream_.front());
  for (std::size_t l = 0; l < blocks_.size(); ++l) {
    const auto layer = static_cast<std::int64_t>(l);
    if (!blocks_share_memory() || l + 1 == blocks_.size())
      blocks_[l].visit_saved(
          [&](const std::string& name, const Tensor& tensor) { visit(layer, name, tensor); });
    visit(layer, "residual stream after mlp", stream_[l + 1]);
  }
  visit(-1, "model.norm output", final_TD_);
  if (n_mtp_depths() > 0) mtp_->visit_saved(visit);
}

}  // namespace switchyard::model
