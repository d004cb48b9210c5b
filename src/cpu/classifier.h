// CPU implementation of ops/classifier.h.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cpu {

template <class T>
void classifier_forward(Tensor loss_T, Tensor x_TD, Tensor weight_VD, Tensor target_T, Context& ctx);
template <class T>
void classifier_forward_backward(Tensor loss_T, Tensor dx_TD, Tensor dweight_VD, Tensor x_TD, Tensor weight_VD,
                                 Tensor target_T, double dloss, Context& ctx);

}  // namespace switchyard::ops::cpu
