// Balance loss and z-loss on the device; contract: ops/balance_loss.h. All in f64 but the counts.
#pragma once

#include "core/balance_loss.h"
#include "core/context.h"

namespace switchyard::ops::cuda {

void add_counts(Tensor count_LE, Tensor count_LBE, Context& ctx);
void balance_loss(Tensor dprob_LBE, Tensor value_2, Tensor count_LBE, Tensor prob_sum_LBE, Tensor lse2_sum_LB,
                  Tensor tokens_B, Tensor count_LE, const BalanceLoss& loss, Context& ctx);

}  // namespace switchyard::ops::cuda
