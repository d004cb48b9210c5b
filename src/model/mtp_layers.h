// Multi-token prediction (DeepSeek-V3, arXiv 2412.19437, section 2.2): depth k = 1, 2, ... predicts token i+k+1
// from position i, from the hidden state of the depth before and the embedding of token i+k:
//
//   in  = eh_proj [enorm(embed(t_{i+k})), hnorm(h^{k-1}_i)]      the embedding first
//   h^k = norm(block(in))                                        the block is of the last layer's kind
//   L_k = cross entropy of head(h^k) and t_{i+k+1}
//
// Embedding and head are the main model's. h^0 is the main model's output behind its final norm, and h^k is
// likewise what the head reads: transformers' MTP model passes those on.
//   T tokens, D hidden size, K depths
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "config/config.h"
#include "core/parameters.h"
#include "model/decoder_block.h"

namespace switchyard::model {

// The sum over k of  dloss_K[k-1] * sum(loss_KT[k-1])  is added to the loss.
struct MtpLoss {
  Tensor loss_KT;  // compute type, set: cross entropy, 0 where a position has no target at that depth
  std::span<const double> dloss_K;
};

// How many positions of a batch (of the host) have a target at depth k: all but the last k of a sequence; with
// a document mask, all but the last k of a document. The others are padding at that depth.
std::int64_t mtp_target_count(const Batch& on_host, std::int64_t depth);

class MtpLayers {
 public:
  // Adds the rows of model.num_nextn_predict_layers depths, as layers num_hidden_layers and up. `embedding` and
  // `head`: the main model's rows; `ranks`: as in MoeLayer.
  MtpLayers(const config::Model& model, const config::Router& router, std::size_t embedding, std::size_t head,
            const ExpertRanks& ranks, ParameterStore& store);

  std::int64_t n_depths() const { return static_cast<std::int64_t>(depths_.size()); }
  router::RoutedLayer* router(std::int64_t depth) const {
    return depths_[static_cast<std::size_t>(depth)].block.router();
  }
  // Blocks of these layers are always kept; `recompute` concerns what is in them.
  void plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype, config::Recompute recompute);

  // final_TD: the main model's output behind its final norm.
  void forward(Tensor final_TD, const RopeTable& rope, const Batch& batch, Context& ctx);
  // Of the last forward pass. loss_KT as in MtpLoss.
  void loss(Tensor loss_KT, Context& ctx);
  // The same, and the gradients: added to the parameters' (those of embedding and head among them) and to
  // dfinal_TD.
  void loss_and_backward(Tensor dfinal_TD, const MtpLoss& loss, Tensor final_TD, const RopeTable& rope,
                         Context& ctx);

  // The tensors of the last forward pass, in the order in which they were computed, by layer number.
  using Visitor = std::function<void(std::int64_t layer, const std::string& name, const Tensor& tensor)>;
  void visit_saved(const Visitor& visit) const;

 private:
  struct Depth {
    std::size_t enorm, hnorm, eh_proj, norm;  // rows
    DecoderBlock block;
    Batch batch{};  // token_T: t_{i+k}; target_T: t_{i+k+1}
    Tensor embedded_TD{}, embedded_rstd_T1{}, hidden_rstd_T1{};
    Tensor joined_T2D{};  // both normed: eh_proj's input
    Tensor in_TD{}, out_TD{};
    Tensor normed_TD{}, normed_rstd_T1{};
  };
  void shift(Depth& depth, std::int64_t ahead, const Batch& batch, Context& ctx);
  // What depth d reads: the depth before, or the main model.
  Tensor hidden_before(std::size_t d, Tensor final_TD) const {
    return d == 0 ? final_TD : depths_[d - 1].normed_TD;
  }
  void backward_through_input(Depth& depth, Tensor dhidden_TD, Tensor din_TD, Tensor hidden_TD, Context& ctx);

  std::int64_t hidden_, first_layer_;
  double eps_;
  std::size_t embedding_, head_;
  ParameterStore& store_;
  std::vector<Depth> depths_;
};

}  // namespace switchyard::model
