// Causal grouped-query attention with rotary positions. Queries and keys may be normed first: each head on its
// own (Qwen3), or all heads of a token in one (OLMoE).
//   T tokens, D hidden size, H query heads, G key-value heads, N head width
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "config/config.h"
#include "core/parameters.h"
#include "model/layers.h"
#include "ops/attention.h"

namespace switchyard::model {

class GqaLayer final : public AttentionLayer {
 public:
  // Adds the layer's rows to the store.
  GqaLayer(const config::Model& model, std::int64_t layer, ParameterStore& store);

  void plan(Arena& arena, std::int64_t n_tokens, DType dtype) override;
  void plan_cache(Arena& arena, std::int64_t n_seq, std::int64_t positions, DType dtype) override;
  void forward(Tensor out_TD, Tensor residual_TD, Tensor x_TD, const RopeTable& rope, const Batch& batch,
               Context& ctx) override;
  void backward(Tensor dx_TD, Tensor dout_TD, Tensor x_TD, const RopeTable& rope, const Batch& batch,
                Context& ctx) override;
  AttentionCost cost() const override;
  void visit_saved(const router::TensorVisitor& visit) const override;

 private:
  struct Saved {
    Tensor qkv_TM;  // [T, (H+2G)*N], the projection; without q/k norm, q and k in it are rotated in place
    Tensor q_THN;   // what attention reads: with q/k norm normed and rotated copies, else columns of qkv_TM
    Tensor k_TGN;
    Tensor q_rstd_TH, k_rstd_TG;  // with q/k norm only; one column where it is of the projection
    Tensor lse_TH;
    Tensor attn_out_THN;  // attention's output, before the output projection
  };
  Tensor q_columns(const Tensor& qkv_TM) const { return qkv_TM.columns(0, heads_ * width_); }
  Tensor k_columns(const Tensor& qkv_TM) const { return qkv_TM.columns(heads_ * width_, kv_heads_ * width_); }
  Tensor v_columns(const Tensor& qkv_TM) const {
    return qkv_TM.columns((heads_ + kv_heads_) * width_, kv_heads_ * width_);
  }
  Shape qkv_shape() const { return Shape{(heads_ + 2 * kv_heads_) * width_, hidden_}; }
  Shape qkv_bias_shape() const { return Shape{(heads_ + 2 * kv_heads_) * width_}; }
  ops::AttentionShape shape_of(const Batch& batch) const;
  // attn_out_THN from the caches, to which the batch's own keys and values are added.
  void attend_cached(const Batch& batch, Context& ctx);
  bool has_norm() const { return qk_norm_ != config::QkNorm::none; }

  std::int64_t hidden_, heads_, kv_heads_, width_, window_;
  config::QkNorm qk_norm_;
  double eps_;
  ParameterStore& store_;
  std::size_t q_weight_, o_weight_, q_norm_ = 0, k_norm_ = 0;  // rows; k and v follow q
  std::optional<std::size_t> q_bias_, o_bias_;                 // likewise
  Saved saved_;
  // One an own sequence, S positions each; keys rotated.
  std::vector<Tensor> cached_k_SGN_, cached_v_SGN_;
};

}  // namespace switchyard::model
