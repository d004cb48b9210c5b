// What lies between a router's scores and its losses, the losses, and what biases are solved from.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include "core/routing.h"
#include "ops/operator.h"

namespace switchyard::ops {

// Weights of slots and sums over tokens.   T tokens of B sequences, E experts, K slots a token
// A token is padding where token_T is negative: it has only free slots and counts in no sum.

// Added to a sum of sigmoid scores before it divides, as in DeepSeek-V3: far from every expert all scores of a
// token are 0.
constexpr double kScoreSumEps = 1e-20;

struct SlotWeighting {
  bool normalise = false;  // divide by the sum over the token's slots, plus eps
  double scale = 1.0;      // multiplies the result
  double eps = 0.0;
};

// weight_TK = scale * chosen_TK, divided by (its sum over the token's slots + eps) if `normalise`; 0 in free
// slots. Set.
SY_OPERATOR(slot_weights_forward, Tensor weight_TK, Tensor chosen_TK, Tensor expert_TK,
            const SlotWeighting& weighting, Context& ctx);

// The gradient with respect to all scores: dscore_TE[t, expert[t,k]] = d/dchosen[t,k], 0 elsewhere. Set.
//   normalised: dchosen_k = (scale dweight_k - sum_j dweight_j weight_j) / (sum_j chosen_j + eps);
//   else        dchosen_k = scale dweight_k
SY_OPERATOR(slot_weights_backward, Tensor dscore_TE, Tensor dweight_TK, Tensor weight_TK, Tensor chosen_TK,
            Tensor expert_TK, const SlotWeighting& weighting, Context& ctx);

// Sums over the tokens of each sequence that are not padding, all set, in double and in token order:
//   count_BE i32: slots on each expert;  prob_sum_BE f64: sum of prob_TE;  prob2_sum_B f64: sum of prob_TE^2
//   over experts, too;  lse2_sum_B f64: sum of lse_T^2.
SY_OPERATOR(routing_sums, Tensor count_BE, Tensor prob_sum_BE, Tensor prob2_sum_B, Tensor lse2_sum_B,
            Tensor expert_TK, Tensor prob_TE, Tensor lse_T, Tensor token_T, Context& ctx);

// For the tokens that are not padding, what comes back through prob_sum_BE and prob2_sum_B:
//   dprob_TE[t] += dprob_BE[sequence of t] + 2 dprob2 prob_TE[t]   dprob_BE f64; with dprob2 = 0 prob_TE is not
//   read.
SY_OPERATOR(add_sequence_gradient, Tensor dprob_TE, Tensor dprob_BE, Tensor prob_TE, double dprob2,
            Tensor token_T, Context& ctx);

// d/dlogit of  dz * sum_t lse_T[t]^2  over the tokens that are not padding:
//   dlogit_TE[t] += 2 dz lse_T[t] prob_TE[t]
SY_OPERATOR(z_loss_backward, Tensor dlogit_TE, Tensor prob_TE, Tensor lse_T, Tensor token_T, double dz,
            Context& ctx);

// Histograms of the gap between scores and the value in force, one an expert, from which quantiles over a whole
// global batch are read. The bins are finest around 0, where the solution is, and grow with the distance, so
// that no scale of the scores is assumed.   T tokens, E experts, N = 2 * kGapBins bins

// The bins of a gap g: kGapBins on each side of 0, with borders e_0 = 0 and e_i = 1e-6 * 1e8^((i-1)/511), i = 1
// to 512. On the right side bin i holds e_i <= g < e_(i+1), on the left one the same of -g, mirrored; what is
// farther than e_512 = 100 counts in the last bin of its side.
constexpr std::int64_t kGapBins = 512;  // a side

inline const std::array<double, kGapBins + 1>& gap_borders() {
  static const std::array<double, kGapBins + 1> borders = [] {
    std::array<double, kGapBins + 1> e{};
    for (std::int64_t i = 1; i <= kGapBins; ++i)
      e[static_cast<std::size_t>(i)] =
          1e-6 * std::pow(1e8, static_cast<double>(i - 1) / static_cast<double>(kGapBins - 1));
    return e;
  }();
  return borders;
}

// Both count over the tokens with token_T >= 0. count_EN f64, set; bins in ascending order of the gap.
//
// The gap score_TE[t,e] - value_E[e].
SY_OPERATOR(score_gap_histogram, Tensor count_EN, Tensor score_TE, Tensor value_E, Tensor token_T,
            Context& ctx);
// The gap cutoff_T[t] - choice_TE[t,e].
SY_OPERATOR(cutoff_gap_histogram, Tensor count_EN, Tensor choice_TE, Tensor cutoff_T, Tensor token_T,
            Context& ctx);

// Balance loss, z-loss and variance loss of all layers from the sums of their routers.
//   L layers with a router, B sequences, E experts, K slots a token

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
// value_3[0] += sum factor * prob_sum_LBE;  value_3[1] += z_coef/L/N * sum lse2_sum_LB.
// The variance loss (arXiv 2505.22323) rewards probabilities that differ from token to token of a sequence, v =
// variance_coef/L/N:
//   value_3[2] -= v * sum over sequences of (prob2_sum_LB - sum_e prob_sum_LBE^2 / n_b)
// dprob_LBE = factor + 2 v prob_sum_LBE / n_b, set (0 for a sequence of padding alone); with -v as
// add_sequence_gradient's dprob2 that is all of the gradient.
//   count_LBE i32, tokens_B i32: without padding; count_LE f64: of the global batch, read for that scope alone;
//   the others f64. Sums in fixed order.
SY_OPERATOR(balance_loss, Tensor dprob_LBE, Tensor value_3, Tensor count_LBE, Tensor prob_sum_LBE,
            Tensor prob2_sum_LB, Tensor lse2_sum_LB, Tensor tokens_B, Tensor count_LE, const BalanceLoss& loss,
            Context& ctx);

}  // namespace switchyard::ops
