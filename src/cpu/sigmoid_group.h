// The CPU version of ops/sigmoid_group.h, which holds the contracts. T: float or double.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cpu {

template <class T>
void sigmoid_forward(Tensor score_TE, Tensor logit_TE);
template <class T>
void sigmoid_backward(Tensor dlogit_TE, Tensor dscore_TE, Tensor score_TE);
template <class T>
void group_choice(Tensor choice_TE, Tensor score_TE, Tensor bias_E, std::int64_t n_group,
                  std::int64_t topk_group);
template <class T>
void gather_slots(Tensor chosen_TK, Tensor score_TE, Tensor expert_TK);
template <class T>
void row_share_forward(Tensor prob_TE, Tensor score_TE);
template <class T>
void row_share_backward(Tensor dscore_TE, Tensor dprob_TE, Tensor prob_TE, Tensor score_TE);

}  // namespace switchyard::ops::cpu
