// AdamW over a parameter store: clip by global norm, then update.
#pragma once

#include <cstdint>
#include <vector>

#include "config/config.h"
#include "core/context.h"
#include "core/parameters.h"

namespace switchyard::train {

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

}  // namespace switchyard::train
