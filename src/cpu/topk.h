// The CPU version of ops/topk.h, which holds the contracts. T: float or double.
#pragma once

#include "core/context.h"

namespace switchyard::cpu {

template <class T>
void softmax_forward(Tensor prob_TE, Tensor lse_T, Tensor logit_TE);
template <class T>
void softmax_backward(Tensor dlogit_TE, Tensor dprob_TE, Tensor prob_TE);
template <class T>
void top_k(Tensor expert_TK, Tensor chosen_TK, Tensor score_TE, Tensor skip_T);

}  // namespace switchyard::cpu
