// The CPU version of ops/prototype.h, which holds the contracts. T: float or double.
#pragma once

#include "core/context.h"
#include "core/prototype_metric.h"

namespace switchyard::ops::cpu {

template <class T>
void prototype_similarity_forward(Tensor score_TE, GaussianRows token_Td, GaussianRows key_Ed,
                                  const PrototypeMetric& metric, Scratch& scratch);
template <class T>
void prototype_similarity_backward(GaussianRows dtoken_Td, GaussianRows dkey_Ed, Tensor dscore_TE,
                                   Tensor score_TE, GaussianRows token_Td, GaussianRows key_Ed,
                                   const PrototypeMetric& metric, Scratch& scratch);

}  // namespace switchyard::ops::cpu
