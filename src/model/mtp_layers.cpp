#include "model/mtp_layers.h"

#include "model/names.h"
#include "ops/classifier.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/linear.h"
#include "ops/norm.h"

namespace switchyard::model {

MtpLayers::MtpLayers(const config::Model& model, const config::Router& router, std::size_t embedding,
                     std::size_t head, const ExpertRanks& ranks, ParameterStore& store)
    : hidden_(model.hidden_size),
      first_layer_(model.num_hidden_layers),
      eps_(model.rms_norm_eps),
      embedding_(embedding),
      head_(head),
      store_(store) {
  for (std::int64_t d = 0; d < model.num_nextn_predict_layers; ++d) {
    const std::int64_t layer = first_layer_ + d;
    const auto norm = [&](const char* name) {
      store.begin_group();
      return store.add({.name = layer_prefix(layer) + name,
                        .shape = Shape{hidden_},
                        .init = Init::ones,
                        .weight_decay = false});
    };
    const std::size_t enorm = norm("enorm.weight"), hnorm = norm("hnorm.weight");
    store.begin_group();
    const std::size_t eh_proj = store.add({.name = layer_prefix(layer) + "eh_proj.weight",
                                           .shape = Shape{hidden_, 2 * hidden_},
                                           .init = Init::normal,
                                           .init_std = model.initializer_range});
    DecoderBlock block(model, router, layer, model.layers.back(), ranks, store);
    depths_.push_back({.enorm = enorm,
                       .hnorm = hnorm,
                       .eh_proj = eh_proj,
                       .norm = norm("shared_head.norm.weight"),
                       .block = std::move(block)});
  }
}

void MtpLayers::plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype,
                     config::Recompute recompute) {
  const std::int64_t n_tokens = n_seq * seq_len;
  const auto rows = [&](std::int64_t columns) { return arena.take(Shape{n_tokens, columns}, dtype); };
  const auto statistic = [&] { return arena.take(Shape{n_tokens, 1}, accumulation_dtype(dtype)); };
  for (Depth& depth : depths_) {
    const auto tokens = [&] { return arena.take(Shape{n_tokens}, DType::i32); };
    depth.batch = {tokens(), tokens(), {}, n_seq, seq_len};
    depth.embedded_TD = rows(hidden_);
    depth.embedded_rstd_T1 = statistic();
    depth.hidden_rstd_T1 = statistic();
    depth.joined_T2D = rows(2 * hidden_);
    depth.in_TD = rows(hidden_);
    depth.block.plan(arena, n_seq, seq_len, dtype, recompute);
    depth.out_TD = rows(hidden_);
    depth.normed_TD = rows(hidden_);
    depth.normed_rstd_T1 = statistic();
  }
}

void MtpLayers::shift(Depth& depth, std::int64_t ahead, const Batch& batch, Context& ctx) {
  Batch shifted = batch;  // all but its tokens and targets
  shifted.token_T = depth.batch.token_T;
  shifted.target_T = depth.batch.target_T;
  depth.batch = shifted;
  ops::shift_tokens(depth.batch.token_T, depth.batch.target_T, batch.token_T, batch.target_T, batch.kv_begin_T,
                    batch.seq_len, ahead, ctx);
}

std::int64_t mtp_target_count(const Batch& on_host, std::int64_t depth) {
  std::int64_t count = 0;
  for (std::int64_t t = 0; t < on_host.token_T.rows(); ++t)
    count += ops::has_shifted_target(on_host.token_T.as<std::int32_t>(), on_host.target_T.as<std::int32_t>(),
                                     on_host.kv_begin_T.as<std::int32_t>(), t, on_host.seq_len, depth);
  return count;
}

void MtpLayers::forward(Tensor final_TD, const RopeTable& rope, const Batch& batch, Context& ctx) {
  for (std::size_t d = 0; d < depths_.size(); ++d) {
    Depth& depth = depths_[d];
    shift(depth, static_cast<std::int64_t>(d) + 1, batch, ctx);
    ops::embedding_forward(depth.embedded_TD, depth.batch.token_T, store_.weight(embedding_), ctx);
    ops::rmsnorm_forward(depth.joined_T2D.columns(0, hidden_), depth.embedded_rstd_T1, depth.embedded_TD,
                         store_.weight(depth.enorm), eps_, ctx);
    ops::rmsnorm_forward(depth.joined_T2D.columns(hidden_, hidden_), depth.hidden_rstd_T1,
                         hidden_before(d, final_TD), store_.weight(depth.hnorm), eps_, ctx);
    ops::linear_forward(depth.in_TD, depth.joined_T2D, store_.weight(depth.eh_proj), ops::Write::set, ctx);
    depth.block.forward(depth.out_TD, depth.in_TD, rope, depth.batch, ctx);
    ops::rmsnorm_forward(depth.normed_TD, depth.normed_rstd_T1, depth.out_TD, store_.weight(depth.norm), eps_,
                         ctx);
  }
}

void MtpLayers::loss(Tensor loss_KT, Context& ctx) {
  for (std::size_t d = 0; d < depths_.size(); ++d) {
    const Tensor loss_T = loss_KT.slice(static_cast<std::int64_t>(d), 1).reshape({loss_KT.dim(1)});
    ops::classifier_forward(loss_T, depths_[d].normed_TD, store_.weight(head_), depths_[d].batch.target_T, ctx);
  }
}

void MtpLayers::loss_and_backward(Tensor dfinal_TD, const MtpLoss& loss, Tensor final_TD, const RopeTable& rope,
                                  Context& ctx) {
  ScratchScope scope(ctx.scratch);
  const auto scratch = [&] { return ctx.scratch.take(dfinal_TD.shape(), dfinal_TD.dtype()); };
  const Tensor dnormed_TD = scratch(), dstream_TD = scratch();
  const Tensor dhidden_TD = scratch();  // of what the depth at hand reads: the depth before adds it to its own
  for (std::size_t d = depths_.size(); d-- > 0;) {
    Depth& depth = depths_[d];
    const Tensor loss_T = loss.loss_KT.slice(static_cast<std::int64_t>(d), 1).reshape({loss.loss_KT.dim(1)});
    ops::classifier_forward_backward(loss_T, dnormed_TD, store_.grad(head_), depth.normed_TD,
                                     store_.weight(head_), depth.batch.target_T, loss.dloss_K[d], ctx);
    if (d + 1 < depths_.size()) ops::add(dnormed_TD, dnormed_TD, dhidden_TD, ctx);
    ops::fill_zero(dstream_TD, ctx);
    ops::rmsnorm_backward(dstream_TD, store_.grad(depth.norm), dnormed_TD, depth.out_TD, depth.normed_rstd_T1,
                          store_.weight(depth.norm), ctx);
    depth.block.backward(dstream_TD, depth.in_TD, rope, depth.batch, ctx);
    backward_through_input(depth, dhidden_TD, dstream_TD, hidden_before(d, final_TD), ctx);
  }
  ops::add(dfinal_TD, dfinal_TD, dhidden_TD, ctx);
}

// From eh_proj's output back to both of its inputs: dhidden_TD set.
void MtpLayers::backward_through_input(Depth& depth, Tensor dhidden_TD, Tensor din_TD, Tensor hidden_TD,
                                       Context& ctx) {
  ScratchScope scope(ctx.scratch);
  const Tensor djoined_T2D = ctx.scratch.take(depth.joined_T2D.shape(), din_TD.dtype());
  const Tensor dembedded_TD = ctx.scratch.take(din_TD.shape(), din_TD.dtype());
  ops::linear_backward_weight(store_.grad(depth.eh_proj), din_TD, depth.joined_T2D, ctx);
  ops::linear_backward_input(djoined_T2D, din_TD, store_.weight(depth.eh_proj), ops::Write::set, ctx);

  ops::fill_zero(dhidden_TD, ctx);
  ops::rmsnorm_backward(dhidden_TD, store_.grad(depth.hnorm), djoined_T2D.columns(hidden_, hidden_), hidden_TD,
                        depth.hidden_rstd_T1, store_.weight(depth.hnorm), ctx);
  ops::fill_zero(dembedded_TD, ctx);
  ops::rmsnorm_backward(dembedded_TD, store_.grad(depth.enorm), djoined_T2D.columns(0, hidden_),
                        depth.embedded_TD, depth.embedded_rstd_T1, store_.weight(depth.enorm), ctx);
  ops::embedding_backward(store_.grad(embedding_), dembedded_TD, depth.batch.token_T, ctx);
}

void MtpLayers::visit_saved(const Visitor& visit) const {
  for (std::size_t d = 0; d < depths_.size(); ++d) {
    const Depth& depth = depths_[d];
    const auto of_layer = [&](const std::string& name, const Tensor& tensor) {
      visit(first_layer_ + static_cast<std::int64_t>(d), name, tensor);
    };
    of_layer("enorm and hnorm output", depth.joined_T2D);
    of_layer("eh_proj output", depth.in_TD);
    depth.block.visit_saved(of_layer);
    of_layer("residual stream after mlp", depth.out_TD);
    of_layer("shared_head.norm output", depth.normed_TD);
  }
}

}  // namespace switchyard::model
