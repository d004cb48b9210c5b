// ops/cosine.h on the CPU.
#pragma once

#include "core/tensor.h"

namespace switchyard::ops::cpu {

template <class T>
void row_norm_l1(Tensor norm_R, Tensor x_RD);
template <class T>
void row_norm_l2(Tensor norm_R, Tensor x_RD);
template <class T>
void cosine_forward(Tensor score_TE, Tensor x_norm_T, Tensor mean_norm_E);
template <class T>
void cosine_backward(Tensor dscore_TE, Tensor dx_TD, Tensor score_TE, Tensor x_TD, Tensor x_norm_T,
                     Tensor mean_norm_E);
template <class T>
void expert_sums(Tensor sum_ED, Tensor count_E, Tensor x_TD, Tensor expert_TK);

}  // namespace switchyard::ops::cpu
