// ops/slots.h on the CPU.
#pragma once

#include "core/tensor.h"

namespace switchyard::ops::cpu {

template <class T>
void keep_prefix_sum(Tensor expert_TK, Tensor chosen_TK, double p);
template <class T>
void keep_count(Tensor expert_TK, Tensor chosen_TK, Tensor count_T);
template <class T>
void keep_finite(Tensor expert_TK, Tensor chosen_TK);
template <class T>
void threshold_choice(Tensor choice_TE, Tensor score_TE, Tensor threshold_E);
template <class T>
void slot_softmax_forward(Tensor weight_TK, Tensor chosen_TK, Tensor expert_TK, double scale);
template <class T>
void slot_softmax_backward(Tensor dscore_TE, Tensor dweight_TK, Tensor weight_TK, Tensor expert_TK,
                           double scale);

}  // namespace switchyard::ops::cpu
