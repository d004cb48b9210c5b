// The first half of a block: attention of one kind or another.   T tokens, D hidden size, S positions, P angles
#pragma once

#include "core/context.h"
#include "model/batch.h"
#include "ops/attention.h"
#include "ops/rope.h"
#include "router/router.h"

namespace switchyard::model {

struct RopeTable {
  Tensor cos_SP, sin_SP;
};

// How evenly each token looks at what it sees: kept where a router asks for it.
class AttentionEntropy {
 public:
  void enable() { enabled_ = true; }  // before plan()
  void plan(Arena& arena, std::int64_t n_tokens, std::int64_t n_heads, DType dtype) {
    if (!enabled_) return;
    entropy_TH_ = arena.take(Shape{n_tokens, n_heads}, accumulation_dtype(dtype));
    entropy_T_ = arena.take(Shape{n_tokens}, accumulation_dtype(dtype));
  }
  Tensor entropy_TH() const {
    return entropy_TH_;
  }                                                // what attention_forward is to set; not defined: not enabled
  Tensor entropy_T() const { return entropy_T_; }  // mean over heads, in shares of the largest possible
  // entropy_T from entropy_TH.
  void finish(const Batch& batch, Context& ctx) const {
    if (enabled_)
      ops::attention_row_entropy(entropy_T_, entropy_TH_, batch.kv_begin_T, batch.seq_len,
                                 batch.n_past.value_or(0), ctx);
  }

 private:
  bool enabled_ = false;
  Tensor entropy_TH_, entropy_T_;
};

class AttentionLayer {
 public:
  virtual ~AttentionLayer() = default;
  AttentionEntropy& entropy() { return entropy_; }
  virtual void plan(Arena& arena, std::int64_t n_tokens, DType dtype) = 0;
  // Reserves what a sequence of up to `positions` tokens leaves behind for those that follow.
  virtual void plan_cache(Arena& arena, std::int64_t positions, DType dtype) = 0;
  // out_TD = residual_TD + attention(x_TD); out_TD may be residual_TD. The rope table begins at the batch's
  // first position.
  virtual void forward(Tensor out_TD, Tensor residual_TD, Tensor x_TD, const RopeTable& rope,
                       const Batch& batch, Context& ctx) = 0;
  // dx_TD set; parameter gradients added.
  virtual void backward(Tensor dx_TD, Tensor dout_TD, Tensor x_TD, const RopeTable& rope, const Batch& batch,
                        Context& ctx) = 0;
  virtual void visit_saved(const router::TensorVisitor& visit) const = 0;

 protected:
  AttentionEntropy entropy_;
};

}  // namespace switchyard::model
