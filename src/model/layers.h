// What the two halves of a decoder block are, whatever kind the layout asks for.
#pragma once

#include "core/context.h"
#include "model/batch.h"
#include "ops/attention.h"
#include "ops/rope.h"
#include "router/routed_layer.h"
#include "router/router.h"

namespace switchyard::model {

// The first half of a block: attention of one kind or another.   T tokens, D hidden size, S positions, P angles

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
  // What attention_forward is to set; not defined where it is not enabled.
  Tensor entropy_TH() const { return entropy_TH_; }
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

// FLOPs of a forward pass.
struct AttentionCost {
  double per_token = 0;  // the projections
  double per_key = 0;    // for each key that a token sees: its score, and its value's share of the output
};

class AttentionLayer {
 public:
  virtual ~AttentionLayer() = default;
  AttentionEntropy& entropy() { return entropy_; }
  virtual void plan(Arena& arena, std::int64_t n_tokens, DType dtype) = 0;
  // Reserves what each of n_seq sequences of up to `positions` tokens leaves behind for those that follow.
  virtual void plan_cache(Arena& arena, std::int64_t n_seq, std::int64_t positions, DType dtype) = 0;
  // out_TD = residual_TD + attention(x_TD); out_TD may be residual_TD. The rope table begins at the batch's
  // first position.
  virtual void forward(Tensor out_TD, Tensor residual_TD, Tensor x_TD, const RopeTable& rope,
                       const Batch& batch, Context& ctx) = 0;
  // dx_TD set; parameter gradients added.
  virtual void backward(Tensor dx_TD, Tensor dout_TD, Tensor x_TD, const RopeTable& rope, const Batch& batch,
                        Context& ctx) = 0;
  virtual AttentionCost cost() const = 0;
  virtual void visit_saved(const router::TensorVisitor& visit) const = 0;

 protected:
  AttentionEntropy entropy_;
};

// The second half of a block: a dense SwiGLU network, or one that is spread over experts.
//   T tokens, D hidden size

// FLOPs of a forward pass.
struct FfnCost {
  double router = 0;    // of a token
  double per_slot = 0;  // for each expert that takes the token
  double always = 0;    // of a token: shared experts, or the dense network
};

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
  virtual FfnCost cost() const = 0;
  virtual void visit_saved(const router::TensorVisitor& visit) const = 0;
};

}  // namespace switchyard::model
