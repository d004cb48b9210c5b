// Balance loss and z-loss of all layers from the sums of their routers.
//   L layers with a router, B sequences, E experts, K slots a token
#pragma once

#include "core/balance_loss.h"
#include "ops/operator.h"

namespace switchyard::ops {

using switchyard::BalanceLoss;
using switchyard::BalanceScope;

// count_LE[l, e] += sum_b count_LBE[l, b, e].   count_LE f64, count_LBE i32
SY_OPERATOR(add_counts, Tensor count_LE, Tensor count_LBE, Context& ctx);

// Every scope has the form  loss = sum_i factor_i * (sum of P_i over tokens), where factor_i carries the share
// of slots and all normalisation; shares have no gradient, so factor_i is also d loss / d P_ti. With n_m tokens
// of the micro-batch, n_b of a sequence, N of the global batch, c = balance_coef:
//   layer         c/L  E  sum_b count_LBE / (K n_m)  / N
//   sequence      c/L  E  count_LBE / (K n_b)        / (n_b * sequences of the global batch)
//   global_batch  c/L  E  count_LE / (K N)           / N
//   model         c    E  sum_lb count_LBE / (L n_m) / (L N)
// dprob_LBE = factor, set (0 for a sequence of padding alone);
// value_2[0] += sum factor * prob_sum_LBE;  value_2[1] += z_coef/L/N * sum lse2_sum_LB.
//   count_LBE i32, tokens_B i32: without padding; count_LE f64: of the global batch, read for that scope alone;
//   the others f64. Sums in fixed order.
SY_OPERATOR(balance_loss, Tensor dprob_LBE, Tensor value_2, Tensor count_LBE, Tensor prob_sum_LBE,
            Tensor lse2_sum_LB, Tensor tokens_B, Tensor count_LE, const BalanceLoss& loss, Context& ctx);

}  // namespace switchyard::ops
