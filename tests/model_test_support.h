// Shared by the tests of the model module: tiny models with weights of order one, batches written out by hand,
// and one pass through a model with all of its losses.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "config/layouts.h"
#include "config/load.h"
#include "model/transformer.h"
#include "ops/routing.h"
#include "router/router.h"
#include "tensors.h"

namespace switchyard::model {

// Two layers of experts, hidden size 8, two heads on one key-value head; DeepSeek-V3 with latent attention, a
// shared expert and two groups of experts.
inline config::Model tiny_model(const config::Layout& layout) {
  config::Model model;
  model.layout = &layout;
  model.vocab_size = 11;
  model.hidden_size = 8;
  model.num_hidden_layers = 2;
  model.num_attention_heads = 2;
  model.num_key_value_heads = 1;
  model.head_dim = 4;
  model.intermediate_size = 6;
  model.moe_intermediate_size = 3;
  model.num_experts = 4;
  model.num_experts_per_tok = 2;
  config::set_layers(model, {true, true});
  model.qk_norm = layout == config::kQwen3Moe ? config::QkNorm::head : config::QkNorm::none;
  model.rope.theta = 100;  // angles that differ visibly within a few positions
  model.max_position_embeddings = 64;
  if (layout == config::kDeepseekV3) {
    model.num_key_value_heads = 2;
    model.mla = {
        .q_lora_rank = 6, .kv_lora_rank = 5, .qk_nope_head_dim = 3, .qk_rope_head_dim = 4, .v_head_dim = 5};
    config::set_layers(model, {true, true});  // latent attention
    model.head_dim = 7;
    model.rope.interleaved = true;
    model.n_shared_experts = 1;
    model.n_group = 2;
    model.topk_group = 1;
    model.routed_scaling_factor = 1.5;
  }
  return model;
}

// All losses, strong enough that each shows in the gradient; DeepSeek-V3's router has no z-loss.
inline config::Router all_losses(config::BalanceScope scope) {
  return {.balance_coef = 0.3,
          .balance_scope = scope,
          .z_loss_coef = 0.1,
          .variance_coef = 0.4,
          .orthogonality_coef = 0.001};  // more bends too strongly for differences
}

// Weights of order one (norms' around one), so that every operator works away from the point where it is
// linear.
inline void fill_weights(ParameterStore& store) {
  for (std::size_t i = 0; i < store.rows().size(); ++i) {
    const bool norm = store.rows()[i].init == Init::ones;
    test::fill_normal(store.value(i), store.rows()[i].name, norm ? 0.2 : 0.5, norm ? 1.0 : 0.0);
  }
}

// The router of a layout with other losses.
inline config::Router default_router(const config::Layout& layout, const config::Router& losses) {
  config::Router router = config::default_router(layout, router::router_schemas());
  router.balance_coef = losses.balance_coef;
  router.balance_scope = losses.balance_scope;
  router.z_loss_coef = losses.z_loss_coef;
  router.variance_coef = losses.variance_coef;
  router.orthogonality_coef = losses.orthogonality_coef;
  return router;
}

// A model that is ready for batches of n_seq * seq_len.
struct ReadyModel : Transformer {
  ReadyModel(const config::Model& model, DType dtype, std::int64_t n_seq, std::int64_t seq_len,
             bool training = true, const config::Router& losses = all_losses(config::BalanceScope::layer))
      : Transformer(model, default_router(*model.layout, losses), dtype, training),
        loss_T({n_seq * seq_len}, dtype),
        mtp_loss_KT({std::max<std::int64_t>(1, n_mtp_depths()), n_seq * seq_len}, dtype) {
    if (training) measure_activations(n_seq, seq_len);  // before there are parameters, as a run does it
    allocate();
    fill_weights(parameters());
    plan(n_seq, seq_len, ctx);
  }
  Context ctx;
  test::OwnedTensor loss_T, mtp_loss_KT;
};

// Sequences of one length, all padding at first.
class TestBatch {
 public:
  TestBatch(std::int64_t n_seq, std::int64_t seq_len)
      : token_T_({n_seq * seq_len}, DType::i32),
        target_T_({n_seq * seq_len}, DType::i32),
        kv_begin_T_({n_seq * seq_len}, DType::i32),
        tokens_B_({n_seq}, DType::i32),
        batch_{.token_T = token_T_,
               .target_T = target_T_,
               .kv_begin_T = kv_begin_T_,
               .n_seq = n_seq,
               .seq_len = seq_len,
               .tokens_B = tokens_B_} {
    for (std::int64_t b = 0; b < n_seq; ++b) test::set(tokens_B_, b, 0);
    for (std::int64_t i = 0; i < n_seq * seq_len; ++i) {
      test::set(token_T_, i, -1);
      test::set(target_T_, i, -1);
      test::set(kv_begin_T_, i, 0);
    }
  }
  // Sequence b: each token predicts the next one, the last one `last_target`.
  TestBatch& sequence(std::int64_t b, const std::vector<int>& tokens, int last_target = 1) {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const std::int64_t at = b * batch_.seq_len + static_cast<std::int64_t>(i);
      test::set(token_T_, at, tokens[i]);
      test::set(target_T_, at, i + 1 < tokens.size() ? tokens[i + 1] : last_target);
    }
    test::set(tokens_B_, b, static_cast<double>(tokens.size()));
    return *this;
  }
  TestBatch& kv_begin(std::int64_t b, const std::vector<int>& positions) {
    for (std::size_t i = 0; i < positions.size(); ++i)
      test::set(kv_begin_T_, b * batch_.seq_len + static_cast<std::int64_t>(i), positions[i]);
    return *this;
  }
  const Batch& batch() const { return batch_; }
  std::int64_t tokens() const {
    std::int64_t sum = 0;
    for (const double tokens : test::values(tokens_B_)) sum += static_cast<std::int64_t>(tokens);
    return sum;
  }
  std::int64_t sequences() const { return batch_.n_seq; }

 private:
  test::OwnedTensor token_T_, target_T_, kv_begin_T_, tokens_B_;
  Batch batch_;
};

struct Losses {
  double cross_entropy = 0;  // mean over the tokens of the global batch
  double mtp = 0;            // as MtpLoss weights it
  double balance = 0;
  double z = 0;
  double others = 0;  // variance and orthogonality
  double sum() const { return cross_entropy + mtp + balance + z + others; }
  Losses& operator+=(const Losses& other) {
    cross_entropy += other.cross_entropy;
    mtp += other.mtp;
    balance += other.balance;
    z += other.z;
    others += other.others;
    return *this;
  }
};

inline double sum_of(const Tensor& tensor) {
  const std::vector<double> all = test::values(tensor);
  return std::accumulate(all.begin(), all.end(), 0.0);
}

// The sum over depths of dloss_K[k] * sum(loss_KT[k]).
inline double weighted_mtp_loss(const ReadyModel& model, std::span<const double> dloss_K) {
  double loss = 0;
  for (std::size_t k = 0; k < dloss_K.size(); ++k)
    loss += dloss_K[k] * sum_of(model.mtp_loss_KT.view().slice(static_cast<std::int64_t>(k), 1));
  return loss;
}

// Slots on each expert of each layer in the last forward pass.
inline std::vector<double> counts_of(const Transformer& model) {
  if (model.routing().n_layers() == 0) return {};
  Context ctx;
  const test::OwnedTensor count_LE({model.routing().n_layers(), model.config().num_experts}, DType::f64);
  for (std::int64_t i = 0; i < count_LE.view().numel(); ++i) test::set(count_LE, i, 0);
  ops::add_counts(count_LE, model.routing().counts().count_LBE, ctx);
  return test::values(count_LE);
}

struct GlobalBatch {
  std::int64_t n_tokens, n_sequences;
  std::vector<double> count_LE{};  // slots on each expert; none: they must not be read
};

struct AuxiliaryLosses {
  double balance = 0, z = 0, others = 0;
};

// Of the last forward pass, with their gradients.
inline AuxiliaryLosses compute_auxiliary(Transformer& model, const TestBatch& batch,
                                         const GlobalBatch& global) {
  if (model.routing().n_layers() == 0) return {};
  Context ctx;
  const Tensor count_LE = model.routing().global_count_LE();
  test::poison(count_LE);
  if (!global.count_LE.empty()) test::fill(count_LE, global.count_LE);
  double values[3] = {};
  model.routing().add_losses(Tensor(values, Shape{3}, DType::f64), batch.batch().tokens_B,
                             {.n_tokens = global.n_tokens, .n_sequences = global.n_sequences}, ctx);
  return {values[0], values[1], values[2]};
}

// Forward and backward of one micro-batch of the global batch; gradients are added to the store's.
inline Losses forward_backward(ReadyModel& model, const TestBatch& batch, const GlobalBatch& global,
                               std::span<const double> mtp_dloss_K = {}) {
  model.forward(batch.batch(), model.ctx);
  model.forward_mtp(batch.batch(), model.ctx);
  const AuxiliaryLosses auxiliary = compute_auxiliary(model, batch, global);
  const double share = 1.0 / static_cast<double>(global.n_tokens);
  const MtpLoss mtp{model.mtp_loss_KT, mtp_dloss_K};
  model.loss_and_backward(model.loss_T, batch.batch(), share, model.ctx, mtp_dloss_K.empty() ? nullptr : &mtp);
  return {share * sum_of(model.loss_T), weighted_mtp_loss(model, mtp_dloss_K), auxiliary.balance, auxiliary.z,
          auxiliary.others};
}

// The same for a batch that is the whole global batch, from gradients of zero.
inline Losses forward_backward(ReadyModel& model, const TestBatch& batch) {
  const Tensor grads = model.parameters().grads();
  for (std::int64_t i = 0; i < grads.numel(); ++i) test::set(grads, i, 0);
  model.forward(batch.batch(), model.ctx);
  model.forward_mtp(batch.batch(), model.ctx);
  std::int64_t n_sequences = 0;
  for (const double tokens : test::values(batch.batch().tokens_B)) n_sequences += tokens > 0 ? 1 : 0;
  return forward_backward(
      model, batch, {.n_tokens = batch.tokens(), .n_sequences = n_sequences, .count_LE = counts_of(model)});
}

}  // namespace switchyard::model
