// A mixture of SwiGLU experts: route, bring tokens to their experts, multiply, bring the weighted results back.
//   T tokens, D hidden size, E experts, K slots a token, R routed rows, F expert width
#pragma once

#include <cstddef>
#include <memory>

#include "config/config.h"
#include "core/parameters.h"
#include "model/dense_layer.h"
#include "model/layers.h"

namespace switchyard::model {

class MoeLayer final : public FfnLayer {
 public:
  // Adds the router's and the experts' rows to the store.
  MoeLayer(const config::Model& model, const config::Router& router, std::int64_t layer, ParameterStore& store);
  void plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype, bool keep) override;
  void forward(Tensor out_TD, Tensor residual_TD, Tensor x_TD, const Batch& batch, Context& ctx) override;
  void backward(Tensor dx_TD, Tensor dout_TD, Tensor x_TD, const Batch& batch, Context& ctx) override;
  router::RoutedLayer* router() const override { return router_.get(); }
  FfnCost cost() const override;
  void visit_saved(const router::TensorVisitor& visit) const override;

 private:
  struct Saved {
    router::RoutingDecision decision;
    Tensor count_E, offset_Ep, slot_row_TK;  // i32
    Tensor row_RD;                           // the experts' inputs, expert after expert
    Tensor weight_R;                         // the routing weights of the rows
    Tensor gate_up_R2F;
    Tensor act_RF;  // weighted, so that the experts' outputs are
  };
  // The kept tensor, or room for its rows in scratch.
  Tensor kept_or_room(const Tensor& kept, std::int64_t columns, Context& ctx) const;
  // The experts' inputs, and their weights, of the last decision.
  void dispatch(Tensor row_RD, Tensor x_TD, Context& ctx) const;
  Shape gate_up_shape() const { return Shape{n_experts_, 2 * width_, hidden_}; }
  Shape down_shape() const { return Shape{n_experts_, hidden_, width_}; }

  std::int64_t hidden_, width_, n_experts_, n_slots_;
  ParameterStore& store_;
  std::unique_ptr<router::RoutedLayer> router_;
  std::unique_ptr<DenseLayer> shared_;  // the shared experts, one network; null without
  double router_cost_ = 0;              // FLOPs of a token
  std::size_t gate_up_ = 0,
              down_ = 0;  // first rows: gate and up of every expert in turn, then down of every expert
  Saved saved_;
};

}  // namespace switchyard::model
