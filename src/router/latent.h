// What the parts of latent prototype routing hand to one another (docs/router-mathematics.md, section 2).
//   T tokens, E experts, d latent width
#pragma once

#include "core/tensor.h"

namespace switchyard::router {

// Rows of the latent space: tokens, or the experts' keys. unit: the means scaled to length 1 (norm: what they
// were). In a gradient, unit is what the reader of unit rows sends back, and norm is not defined.
struct LatentRows {
  Tensor mean;
  Tensor log_var{};  // of keys: only where the similarity compares distributions
  Tensor unit;
  Tensor norm{};
};

}  // namespace switchyard::router
