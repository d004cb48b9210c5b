// Similarities to prototypes on the device; shapes and formulas: ops/prototype.h. All f32.
#pragma once

#include "core/context.h"
#include "core/prototype_metric.h"

namespace switchyard::ops::cuda {

void prototype_similarity_forward(Tensor score_TE, GaussianRows token_Td, GaussianRows key_Ed,
                                  const PrototypeMetric& metric, Context& ctx);
void prototype_similarity_backward(GaussianRows dtoken_Td, GaussianRows dkey_Ed, Tensor dscore_TE,
                                   Tensor score_TE, GaussianRows token_Td, GaussianRows key_Ed,
                                   const PrototypeMetric& metric, Context& ctx);

}  // namespace switchyard::ops::cuda
