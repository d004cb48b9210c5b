// The experts of one MoE layer that this rank holds, and nothing of how tokens came to them: sort slots by
// expert, bring tokens to rows, multiply, add the weighted results up.
//   S tokens, D hidden size, E experts that are here, K slots a token, R rows, F expert width
#pragma once

#include <cstddef>

#include "config/config.h"
#include "core/context.h"
#include "core/parameters.h"
#include "router/router.h"

namespace switchyard::model {

class Experts {
 public:
  // Adds the rows of all experts of the layer to the store.
  Experts(const config::Model& model, std::int64_t layer, ParameterStore& store);

  // Of `size` equal parts of neighbours, part `place` is here. Before plan().
  void hold_part(int place, int size);
  std::int64_t n_here() const { return n_here_; }
  std::int64_t first_here() const { return first_; }

  // Reserves what lasts from forward to backward, for up to n_tokens tokens and n_rows rows. `keep`: rows and
  // activations too.
  void plan(Arena& arena, std::int64_t n_tokens, std::int64_t n_slots, std::int64_t n_rows, DType dtype,
            bool keep);
  bool keeps_rows() const { return saved_.row_RD.defined(); }

  // The functions below are called in their order; what is not kept is made again before the backward pass.

  // Gives the slots rows. expert_SK: i32, the number among the experts here, negative where free. With need_1
  // (i32; not defined: rows fit) slots for which there is no row are left out, and need_1 = max(need_1, rows).
  void sort(Tensor expert_SK, Tensor need_1, Context& ctx);
  struct Rows {
    Tensor row_RD;  // the experts' inputs, expert after expert
    Tensor act_RF;  // weighted, so that the experts' outputs are
  };
  Rows rows(Context& ctx) const;  // the kept tensors, or room for them in scratch
  void dispatch(const Rows& rows, Tensor x_SD, Tensor weight_SK, Context& ctx) const;
  void gate_up(const Rows& rows, Context& ctx) const;
  void activate(const Rows& rows, Context& ctx) const;  // from gates and ups, where those are still there
  // out_SD = addend_SD + what the experts make of the tokens. out_SD may be addend_SD. overlap_1, where it is
  // defined: how alike the experts' outputs are (ops/overlap.h), set.
  void combine(Tensor out_SD, Tensor addend_SD, const Rows& rows, Tensor overlap_1, Context& ctx) const;

  struct RowGradients {
    Tensor dout_RD;  // of the experts' outputs
    Tensor drow_RD;  // of their inputs; the same memory, or apart
    Tensor dweight_R;
  };
  RowGradients row_gradients(bool apart, Context& ctx) const;  // room in scratch
  void begin_backward(const RowGradients& gradients, Tensor dout_SD, Context& ctx) const;
  // The outputs' gradients += that of scale * overlap_1.
  void add_overlap_gradient(const RowGradients& gradients, const Rows& rows, double scale, Context& ctx) const;
  // Of gates and ups, in scratch; sets gradients.dweight_R.
  Tensor gate_up_gradient(const RowGradients& gradients, Context& ctx) const;
  // Added to the weights'. Where inputs' and outputs' gradients are not apart, before the next.
  void backward_weights(const RowGradients& gradients, Tensor dgate_up_R2F, const Rows& rows,
                        Context& ctx) const;
  void backward_input(const RowGradients& gradients, Tensor dgate_up_R2F, Context& ctx) const;
  // dx_SD is added to, dweight_SK set.
  void finish_backward(Tensor dx_SD, Tensor dweight_SK, const RowGradients& gradients, Context& ctx) const;

  void visit_saved(const router::TensorVisitor& visit) const;

 private:
  // First rows of what is here.
  std::size_t gate_up_row() const { return gate_up_ + 2 * static_cast<std::size_t>(first_); }
  std::size_t down_row() const { return down_ + static_cast<std::size_t>(first_); }
  Shape gate_up_shape() const { return Shape{n_here_, 2 * width_, hidden_}; }
  Tensor outputs(const Rows& rows, Context& ctx) const;  // weighted; in scratch of the caller's scope
  Shape down_shape() const { return Shape{n_here_, hidden_, width_}; }

  struct Saved {
    Tensor count_E, offset_Ep, slot_row_SK;  // i32
    Tensor weight_R;                         // the routing weights of the rows
    Tensor gate_up_R2F;
    Tensor row_RD, act_RF;
  };
  std::int64_t hidden_, width_, n_experts_, first_ = 0, n_here_;
  ParameterStore& store_;
  std::size_t gate_up_ = 0,
              down_ = 0;  // first rows: gate and up of every expert in turn, then down of every expert
  Saved saved_;
  Tensor slot_row_SK_;  // of the tokens sorted last
};

}  // namespace switchyard::model
