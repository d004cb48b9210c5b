// The output layer and its cross entropy, fused and chunked: logits exist for a few hundred rows at a time.
//   T tokens, D width, V vocabulary
#pragma once

#include "core/context.h"

namespace switchyard::ops {

// z = x_TD[t] . weight_VD^T;  loss_T[t] = logsumexp(z) - z[target_T[t]], set; 0 where target_T[t] < 0 (not
// predicted).
//   target_T i32; x_TD, weight_VD, loss_T f32|f64.
void classifier_forward(Tensor loss_T, Tensor x_TD, Tensor weight_VD, Tensor target_T, Context& ctx);

// The same together with the gradients of sum_t dloss * loss_T[t]: with dz = dloss * (softmax(z) -
// onehot(target)),
//   dx_TD = dz weight_VD, set;   dweight_VD += dz^T x_TD.   A row with target < 0 gives zeros.
void classifier_forward_backward(Tensor loss_T, Tensor dx_TD, Tensor dweight_VD, Tensor x_TD, Tensor weight_VD,
                                 Tensor target_T, double dloss, Context& ctx);

}  // namespace switchyard::ops
