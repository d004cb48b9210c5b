// AdamW (Loshchilov & Hutter, arXiv 1711.05101).
#pragma once

#include "core/adamw_step.h"
#include "core/context.h"

namespace switchyard::ops {

using switchyard::AdamWStep;

// g = grad_scale * grad_P;  m = beta1 m + (1-beta1) g;  v = beta2 v + (1-beta2) g^2;
// param -= lr * ( (m / (1-beta1^step)) / (sqrt(v / (1-beta2^step)) + eps) + weight_decay * param ).
//   param_P, m_P, v_P updated; all contiguous, of one shape and dtype (f32|f64).
//   weight_P (bf16, on a device; not defined: none): param_P rounded, set.
void adamw_update(Tensor param_P, Tensor m_P, Tensor v_P, Tensor grad_P, const AdamWStep& step, Context& ctx,
                  Tensor weight_P = {});

}  // namespace switchyard::ops
