// The first half of a block: attention of one kind or another.   T tokens, D hidden size, S positions, P angles
#pragma once

#include "core/context.h"
#include "core/rope_layout.h"
#include "model/batch.h"
#include "router/router.h"

namespace switchyard::model {

struct RopeTable {
  Tensor cos_SP, sin_SP;
};

class AttentionLayer {
 public:
  virtual ~AttentionLayer() = default;
  virtual void plan(Arena& arena, std::int64_t n_tokens, DType dtype) = 0;
  // Reserves what a sequence of up to `positions` tokens leaves behind for those that follow.
  virtual void plan_cache(Arena& arena, std::int64_t positions, DType dtype) = 0;
  // out_TD += attention(x_TD). The rope table begins at the batch's first position.
  virtual void forward(Tensor out_TD, Tensor x_TD, const RopeTable& rope, const Batch& batch, Context& ctx) = 0;
  // dx_TD set; parameter gradients added.
  virtual void backward(Tensor dx_TD, Tensor dout_TD, Tensor x_TD, const RopeTable& rope, const Batch& batch,
                        Context& ctx) = 0;
  virtual void visit_saved(const router::TensorVisitor& visit) const = 0;
};

}  // namespace switchyard::model
