// AdamW over a parameter store, of one rank or of many that share its work, and the learning rate of each of
// its steps.
#pragma once

#include <cstdint>
#include <vector>

#include "config/config.h"
#include "core/context.h"
#include "core/parameters.h"
#include "parallel/world.h"

namespace switchyard::train {

// A step is, once gradients have been added up over ranks (gradient_sums.h): measure(), update(). With
// parallel.zero 0 every rank keeps all moments, and each updates everything. Else each updates what it owns,
// and the values go to all: the same bits.
class AdamW {
 public:
  // The store has been laid out for the mesh; both outlive this. All ranks construct it together. `zero`: the
  // level, of no effect with one rank.
  AdamW(const config::Train& options, const ParameterStore& store, const parallel::Mesh& mesh,
        std::int64_t zero, Device device);

  // Sets grad_squares_1 (f64, on the store's device): the sum of the gradient's squares, the same bits on every
  // rank and from equal gradients on any number of ranks. Parts of blocks that this rank owns are summed here,
  // then all blocks are added in the order of the model.
  void measure(const ParameterStore& store, Tensor grad_squares_1, Context& ctx) const;
  // One update with learning rate `lr`; `step` counts updates from 1. Where clip_norm > 0 the gradient is
  // scaled by min(1, clip_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ does. grad_squares_1: as
  // measured; where it is not finite nothing is updated.
  void update(ParameterStore& store, Tensor grad_squares_1, double lr, std::int64_t step, Context& ctx) const;

 private:
  // Neighbouring rows that are updated alike are one range of the flat arrays.
  struct Range {
    FlatRange flat;
    bool decay, of_router;
  };
  void find_ranges(const ParameterStore& store);
  void find_blocks(const ParameterStore& store, Device device);

  config::Train options_;
  const parallel::Mesh& mesh_;
  bool everywhere_;  // whether each rank updates everything
  std::vector<Range> ranges_;
  AlignedBuffer tables_;
  Tensor block_B3_, index_M_;         // i32: of ops::squares_of_blocks and ops::sum_at
  std::int64_t most_own_blocks_ = 0;  // of any rank
};

// Learning-rate schedules.

// The learning rate of optimizer step `step`, counted from 1; a pure function.
//
//   S = train.steps, W = round(warmup_ratio * S), D = round(decay_ratio * S), r = min_lr_ratio
//   warm-up    step <= W:  lr * step / W
//   after it, with t = (step - W) / (S - W), which reaches 1 at step S and stays there:
//   constant   lr
//   linear     lr * (1 - (1 - r) * t)
//   cosine     lr * (r + (1 - r) * (1 + cos(pi * t)) / 2)
//   wsd        lr up to step B = max(W, S - D), then the cosine above with t = (step - B) / (S - B)
double learning_rate(const config::Train& train, std::int64_t step);

}  // namespace switchyard::train
