// AdamW (Loshchilov & Hutter, arXiv 1711.05101).
#pragma once

#include "ops/operator.h"

namespace switchyard::ops {

// The numbers of one update.
struct AdamWStep {
  double lr;
  double beta1;
  double beta2;
  double eps;
  double weight_decay;
  std::int64_t step;  // 1 for the first update: bias correction
};

// g = grad_scale_1 * grad_P;  m = beta1 m + (1-beta1) g;  v = beta2 v + (1-beta2) g^2;
// param -= lr * ( (m / (1-beta1^step)) / (sqrt(v / (1-beta2^step)) + eps) + weight_decay * param ).
//   param_P, m_P, v_P updated; all contiguous, of one shape and dtype (f32|f64).
//   weight_P (bf16, on a device; not defined: none): param_P rounded, set.
//   grad_scale_1 f64. Where it is NaN nothing is updated: the gradient is not finite.
SY_OPERATOR(adamw_update, Tensor param_P, Tensor m_P, Tensor v_P, Tensor grad_P, Tensor grad_scale_1,
            const AdamWStep& step, Tensor weight_P, Context& ctx);

// grad_scale_1 = min(1, clip_norm / (sqrt(sum_of_squares_1) + 1e-6)), as torch.nn.utils.clip_grad_norm_ scales;
// 1 where clip_norm is 0; NaN where the sum is not finite. Both f64; set.
SY_OPERATOR(clip_factor, Tensor grad_scale_1, Tensor sum_of_squares_1, double clip_norm, Context& ctx);

}  // namespace switchyard::ops
