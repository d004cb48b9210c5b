// The CPU version of ops/balance_loss.h, which holds the contracts.
#pragma once

#include "core/balance_loss.h"
#include "core/tensor.h"

namespace switchyard::ops::cpu {

void add_counts(Tensor count_LE, Tensor count_LBE);
void balance_loss(Tensor dprob_LBE, Tensor value_2, Tensor count_LBE, Tensor prob_sum_LBE, Tensor lse2_sum_LB,
                  Tensor tokens_B, Tensor count_LE, const BalanceLoss& loss);

}  // namespace switchyard::ops::cpu
