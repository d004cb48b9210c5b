// A mixture of SwiGLU experts: route, bring tokens to their experts, multiply, bring the weighted results back.
// Where ranks share the experts, tokens go to all of them that have one of a token's experts, and the partial
// sums come home; all ranks of the group run the same passes of the same layers in the same order, whatever
// their tokens are, and each decides for its own.
//   T tokens, S tokens that have come (T where nobody shares), D hidden size, E experts, K slots a token
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "config/config.h"
#include "core/parameters.h"
#include "model/dense_layer.h"
#include "model/expert_ranks.h"
#include "model/experts.h"
#include "model/layers.h"

namespace switchyard::model {

class MoeLayer final : public FfnLayer {
 public:
  // Adds the router's and the experts' rows to the store. `ranks` outlives this and is set before plan().
  MoeLayer(const config::Model& model, const config::Router& router, std::int64_t layer,
           const ExpertRanks& ranks, ParameterStore& store);
  void plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype, bool keep) override;
  void forward(Tensor out_TD, Tensor residual_TD, Tensor x_TD, const Batch& batch, Context& ctx) override;
  void backward(Tensor dx_TD, Tensor dout_TD, Tensor x_TD, const Batch& batch, Context& ctx) override;
  router::RoutedLayer* router() const override { return router_.get(); }
  FfnCost cost() const override;
  void visit_saved(const router::TensorVisitor& visit) const override;

 private:
  // Tokens [first, first + count) of this rank, which go to the experts together.
  struct Round {
    std::int64_t first, count;
    Tensor of(const Tensor& of_all) const { return of_all.defined() ? of_all.slice(first, count) : of_all; }
  };
  Round round(std::int64_t number) const;
  // What the experts see of the last decision's tokens; in scratch where that is not x_TD itself.
  Tensor experts_input(Tensor x_TD, Context& ctx) const;
  using Work = std::function<void()>;
  bool overlaps() const { return exchange_ && ranks_.overlap; }
  bool in_rounds() const { return ranks_.n_rounds > 1; }
  // Brings the round's tokens to the experts' rows; with `route` says first where they go and gives them rows.
  // While they are under way, where that is beside, it does `meanwhile`.
  void fill_rows(const Experts::Rows& rows, Tensor input_TD, const Round& round, bool route,
                 const Work& meanwhile, Context& ctx);
  // out_TD = addend_TD + experts(input_TD), once `first` is done, which may set the addend.
  void forward_experts(Tensor out_TD, Tensor addend_TD, Tensor input_TD, const Work& first, Context& ctx);
  // dinput_TD is added to once `first` is done, dweight_TK set.
  void backward_experts(Tensor dinput_TD, Tensor dweight_TK, Tensor dout_TD, Tensor input_TD, const Work& first,
                        Context& ctx);
  // From the gradient of the experts' outputs, in `gradients`, to those of their inputs, which come home, and
  // of their weights.
  void backward_rows(Tensor dinput_TD, Tensor dweight_TK, const Experts::RowGradients& gradients,
                     const Experts::Rows& rows, const Round& round, Context& ctx);

  const ExpertRanks& ranks_;
  std::int64_t n_experts_;  // on all ranks
  std::unique_ptr<router::RoutedLayer> router_;
  std::unique_ptr<DenseLayer> shared_;               // the shared experts, one network; null without
  std::optional<Experts> experts_;                   // always there: made last
  double router_cost_ = 0, slot_cost_ = 0;           // FLOPs of a token, and of a slot
  std::optional<parallel::TokenExchange> exchange_;  // where ranks share the experts
  router::RoutingDecision decision_;
  std::int64_t n_tokens_ = 0;  // T as planned
};

}  // namespace switchyard::model
