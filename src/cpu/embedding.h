// The CPU version of ops/embedding.h, which holds the contracts. T: float or double.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cpu {

template <class T>
void embedding_forward(Tensor out_TD, Tensor token_T, Tensor weight_VD);
template <class T>
void embedding_backward(Tensor dweight_VD, Tensor dout_TD, Tensor token_T);

}  // namespace switchyard::ops::cpu
