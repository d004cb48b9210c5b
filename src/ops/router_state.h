// What an optimizer step does to what routers keep beside their weights: biases, thresholds and running means,
// from sums over the tokens of the global batch.   E experts, N bins of a gap (ops/routing.h), D columns, V
// tokens of the vocabulary
//
// Sums and counts are f64, states of the store's type; all lie where the run computes, so that nobody waits.
#pragma once

#include "ops/operator.h"

namespace switchyard::ops {

// Balancing without a loss: bias_E moves by what each expert had.   count_E: slots on each expert
//
// bias_E[e] += speed * s[e], s[e] = sign(mean(count_E) - count_E[e]) (arXiv 2408.15664); less the mean of s if
// `mean_free`.
SY_OPERATOR(balance_bias, Tensor bias_E, Tensor count_E, double speed, bool mean_free, Context& ctx);

// With u[e] = speed * tanh(kappa * (1 - count_E[e] / mean(count_E))), less the mean of u,
//   momentum_E = keep * momentum_E + (1 - keep) * u;  bias_E += momentum_E
// (arXiv 2602.17004). Where nothing was counted at all, both stay.
struct SoftClamp {
  double speed, kappa, keep;
};
SY_OPERATOR(balance_bias_softly, Tensor bias_E, Tensor momentum_E, Tensor count_E, const SoftClamp& clamp,
            Context& ctx);

// load_E = decay * load_E + (1 - decay) * count_E / mean(count_E), an expert's share of the slots times E, and
//   bias_E[e] = -strength * log(max(load_E[e], kLeastLoad)), less its mean over experts
// (arXiv 2605.15403: minus the gradient of the negative entropy). Where nothing was counted at all, both stay.
constexpr double kLeastLoad = 1e-6;
SY_OPERATOR(follow_load_bias, Tensor bias_E, Tensor load_E, Tensor count_E, double decay, double strength,
            Context& ctx);

// The q quantile of what is counted in an expert's bins is where the running count reaches q times the whole,
// straight between the borders of that bin; 0 where nothing was counted: the value in force stays.
//
// value_E += (1 - decay) * the q quantile of the expert's row of count_EN.
SY_OPERATOR(follow_quantiles, Tensor value_E, Tensor count_EN, double q, double decay, Context& ctx);
// bias_E = ema * bias_E + (1 - ema) * solved, where solved is bias_E moved by the `share` quantiles, less the
// mean over experts. Where nothing was counted at all, bias_E stays.
SY_OPERATOR(follow_quantile_bias, Tensor bias_E, Tensor count_EN, double share, double ema, Context& ctx);

// mean_ED = decay * mean_ED + (1 - decay) * sum_ED / count_E; rows with a count of 0 stay.
SY_OPERATOR(follow_means, Tensor mean_ED, Tensor sum_ED, Tensor count_E, double decay, Context& ctx);

// mean_1 and variance_1 keep `decay` of themselves and get the rest from moments_3: a count, a sum and a sum of
// squares (token_moments). A variance of 0 keeps nothing: it is the state before the first step. A count of 0
// changes nothing.
SY_OPERATOR(follow_moments, Tensor mean_1, Tensor variance_1, Tensor moments_3, double decay, Context& ctx);

// value_V keeps `decay` of itself and gets the rest from the mean of its token: sum_2V has V sums, then V
// counts. A value of 0 keeps nothing: its token has not been seen. A count of 0 changes nothing.
SY_OPERATOR(follow_token_means, Tensor value_V, Tensor sum_2V, double decay, Context& ctx);

// ema_ED = decay * ema_ED + (1 - decay) * sum_ED, the same of ema_E and count_E; key_ED = ema_ED / max(ema_E,
// 1e-6).
SY_OPERATOR(follow_ratios, Tensor key_ED, Tensor ema_ED, Tensor ema_E, Tensor sum_ED, Tensor count_E,
            double decay, Context& ctx);

}  // namespace switchyard::ops
