// One block: attention, then a feed-forward layer, each behind its own norm and added to the residual stream.
//   T tokens, D hidden size
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#include "config/config.h"
#include "core/parameters.h"
#include "model/expert_ranks.h"
#include "model/layers.h"

namespace switchyard::model {

// Of a forward pass, in FLOPs; what is counted and what is not stands in cost.h.
struct LayerCost {
  AttentionCost attention;
  FfnCost ffn;
};

class DecoderBlock {
 public:
  // Adds the block's rows to the store, under the names of layer `layer`. `ranks`: as in MoeLayer.
  DecoderBlock(const config::Model& model, const config::Router& router, std::int64_t layer,
               const config::LayerSpec& spec, const ExpertRanks& ranks, ParameterStore& store);

  void plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype, config::Recompute recompute);

  void plan_cache(Arena& arena, std::int64_t n_seq, std::int64_t positions, DType dtype) {
    attention_->plan_cache(arena, n_seq, positions, dtype);
  }

  // out_TD = block(in_TD), set; out_TD may be in_TD where no backward pass follows. Not defined: as in
  // FfnLayer.
  void forward(Tensor out_TD, Tensor in_TD, const RopeTable& rope, const Batch& batch, Context& ctx);
  // dstream_TD: the gradient of forward's out_TD, replaced by that of its in_TD; parameter gradients added.
  // `before_attention` is called, if it is set, when all but attention is done.
  void backward(Tensor dstream_TD, Tensor in_TD, const RopeTable& rope, const Batch& batch, Context& ctx,
                const std::function<void()>& before_attention = {});

  LayerCost cost() const { return {attention_->cost(), ffn_->cost()}; }
  router::RoutedLayer* router() const { return ffn_->router(); }  // null in a dense block
  // The tensors of the last forward pass, in the order in which they were computed, but for the stream itself.
  void visit_saved(const router::TensorVisitor& visit) const;

 private:
  struct Saved {
    Tensor attention_in_TD, attention_rstd_T1;  // the normed stream
    Tensor mid_TD, ffn_in_TD, ffn_rstd_T1;      // the stream after attention; its norm
  };
  double eps_;
  ParameterStore& store_;
  std::size_t attention_norm_ = 0, ffn_norm_ = 0;  // rows
  std::unique_ptr<AttentionLayer> attention_;
  std::unique_ptr<FfnLayer> ffn_;
  Saved saved_;
};

}  // namespace switchyard::model
