// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1; DeepSeek-V3, arXiv 2412.19437): keys
// and values of all heads are made from one narrow latent vector a token.
//   T tokens, D hidden size, H heads, P nope width, R rope width, N = P + R, V value width, C latent, Q query
//   latent
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "config/config.h"
#include "core/parameters.h"
#include "model/layers.h"
#include "ops/attention.h"
#include "ops/mla.h"

namespace switchyard::model {

class MlaLayer final : public AttentionLayer {
 public:
  // Adds the layer's rows to the store.
  MlaLayer(const config::Model& model, std::int64_t layer, ParameterStore& store);

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
    Tensor q_latent_TQ, q_normed_TQ, q_rstd_T1;  // with a query latent only
    Tensor q_THN;                                // rotated in place
    Tensor latent_TM;  // [T, C+R]: the latent, and the shared key part, rotated in place
    Tensor kv_normed_TC, kv_rstd_T1;
    Tensor kv_TM;  // [T, H*(P+V)]
    Tensor k_THN, v_THV;
    Tensor lse_TH;
    Tensor attn_out_THV;  // attention's output, before the output projection
  };
  Tensor latent_columns(const Tensor& latent_TM) const { return latent_TM.columns(0, latent_); }
  Tensor rope_columns(const Tensor& latent_TM) const { return latent_TM.columns(latent_, widths_.rope); }
  ops::AttentionShape shape_of(const Batch& batch) const;
  // attn_out_THV from keys and values of all heads, which the batch's own latents are multiplied out to.
  void attend_multiplied_out(const Batch& batch, Context& ctx);
  // The same from the cache's latents alone, for a batch that has tokens before it.
  void attend_cached(const Batch& batch, Context& ctx);
  ops::RopeLayout rope_of(std::int64_t head_dim) const { return {head_dim, pairs_}; }

  std::int64_t hidden_, q_latent_, latent_;
  ops::MlaWidths widths_;
  ops::RopePairs pairs_;
  double softmax_scale_;
  ParameterStore& store_;
  // Rows. q_: q_proj, or q_a_proj with q_a_norm_ and q_b_.
  std::size_t q_ = 0, q_a_norm_ = 0, q_b_ = 0, kv_a_ = 0, kv_a_norm_ = 0, kv_b_ = 0, o_ = 0;
  std::optional<std::size_t> q_a_bias_, kv_a_bias_, o_bias_;
  Saved saved_;
  // One an own sequence, [S, C+R], S positions: the normed latent, and the rotated key part.
  std::vector<Tensor> cached_SM_;
};

}  // namespace switchyard::model
