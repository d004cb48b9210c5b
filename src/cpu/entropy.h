// ops/entropy.h on the CPU.
#pragma once

#include "core/tensor.h"

namespace switchyard::ops::cpu {

template <class T>
void softmax_entropy_forward(Tensor entropy_T, Tensor logit_TE, Tensor prob_TE, Tensor lse_T);
template <class T>
void softmax_entropy_backward(Tensor dlogit_TE, Tensor entropy_T, Tensor logit_TE, Tensor prob_TE, Tensor lse_T,
                              Tensor skip_T, double dentropy);
template <class T>
double sum_of_tokens(Tensor x_T, Tensor skip_T);

}  // namespace switchyard::ops::cpu
