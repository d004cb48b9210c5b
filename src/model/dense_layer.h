// down( silu(gate x) * up x ).   T tokens, D hidden size, F intermediate size
#pragma once

#include <cstddef>
#include <string>

#include "core/parameters.h"
#include "model/layers.h"

namespace switchyard::model {

class DenseLayer final : public FfnLayer {
 public:
  // Adds the layer's rows to the store, as `prefix` + "gate_proj.weight" and so on.
  DenseLayer(const std::string& prefix, std::int64_t hidden_size, std::int64_t width, double init_std,
             ParameterStore& store);
  void plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype, bool keep) override;
  void forward(Tensor out_TD, Tensor residual_TD, Tensor x_TD, const Batch& batch, Context& ctx) override;
  void backward(Tensor dx_TD, Tensor dout_TD, Tensor x_TD, const Batch& batch, Context& ctx) override;
  router::RoutedLayer* router() const override { return nullptr; }
  FfnCost cost() const override;
  void visit_saved(const router::TensorVisitor& visit) const override;

 private:
  Shape gate_up_shape() const { return Shape{2 * width_, hidden_}; }

  std::int64_t hidden_, width_;
  ParameterStore& store_;
  std::size_t gate_, down_;  // rows; up follows gate
  // The kept one, or room for it in scratch.
  Tensor activated(Context& ctx) const;
  Tensor gate_up_T2F_, act_TF_;  // act_TF_ not defined: it is made again
};

}  // namespace switchyard::model
