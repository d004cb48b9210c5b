// The second half of a block: a dense SwiGLU network, or one that is spread over experts.
//   T tokens, D hidden size
#pragma once

#include "core/context.h"
#include "model/batch.h"
#include "router/routed_layer.h"

namespace switchyard::model {

class FfnLayer {
 public:
  virtual ~FfnLayer() = default;
  // `keep`: what can be made again from x is kept for the backward pass, and not made again.
  virtual void plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype, bool keep) = 0;
  // out_TD = residual_TD + ffn(x_TD); out_TD may be residual_TD. Not defined: what backward() needs is made
  // again, and no more.
  virtual void forward(Tensor out_TD, Tensor residual_TD, Tensor x_TD, const Batch& batch, Context& ctx) = 0;
  // dx_TD set; parameter gradients added.
  virtual void backward(Tensor dx_TD, Tensor dout_TD, Tensor x_TD, const Batch& batch, Context& ctx) = 0;
  virtual router::RoutedLayer* router() const = 0;  // null in a dense layer
  virtual void visit_saved(const router::TensorVisitor& visit) const = 0;
};

}  // namespace switchyard::model
