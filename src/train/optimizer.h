// AdamW over a parameter store, and the learning rate of each of its steps.
#pragma once

#include <cstdint>
#include <vector>

#include "config/config.h"
#include "core/context.h"
#include "core/parameters.h"

namespace switchyard::train {

// AdamW over a parameter store: clip by global norm, then update.

class AdamW {
 public:
  AdamW(const config::Train& options, const ParameterStore& store);

  // Sets grad_squares_1 (f64, on the store's device): the sum of the gradient's squares.
  void measure(const ParameterStore& store, Tensor grad_squares_1, Context& ctx) const;
  // One update with learning rate `lr`; `step` counts updates from 1. Where clip_norm > 0 the gradient is
  // scaled by min(1, clip_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ does. grad_squares_1: as
  // measured; where it is not finite nothing is updated.
  void update(ParameterStore& store, Tensor grad_squares_1, double lr, std::int64_t step, Context& ctx) const;

 private:
  // Neighbouring rows with one decay setting are one range of the flat arrays.
  struct Range {
    std::int64_t first, count;
    bool decay;
  };
  config::Train options_;
  std::vector<Range> ranges_;
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
