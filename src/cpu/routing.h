// CPU implementation of ops/routing.h.
#pragma once

#include "core/context.h"
#include "core/slot_weighting.h"

namespace switchyard::ops::cpu {

template <class T>
void slot_weights_forward(Tensor weight_TK, Tensor chosen_TK, Tensor expert_TK, const SlotWeighting& weighting);
template <class T>
void slot_weights_backward(Tensor dscore_TE, Tensor dweight_TK, Tensor weight_TK, Tensor chosen_TK,
                           Tensor expert_TK, const SlotWeighting& weighting);
template <class T>
void routing_sums(Tensor count_BE, Tensor prob_sum_BE, Tensor lse2_sum_B, Tensor expert_TK, Tensor prob_TE,
                  Tensor lse_T, Tensor token_T);
template <class T>
void add_sequence_gradient(Tensor dprob_TE, Tensor dprob_BE, Tensor token_T);
template <class T>
void z_loss_backward(Tensor dlogit_TE, Tensor prob_TE, Tensor lse_T, Tensor token_T, double dz);

}  // namespace switchyard::ops::cpu
