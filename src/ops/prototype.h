// Similarities of tokens to prototypes, computed pair by pair: no products whose difference would cancel, and
// nothing of size T x E x d (docs/router-mathematics.md, section 2).   T tokens, E experts, d latent width;
// rows may be strided
//
//   gaussian     S = exp(-D / (2 sigma^2)),  D = sum_j (m_tj - m_ej)^2
//   mahalanobis  S = 1 / (1 + D),            D = sum_j (m_tj - m_ej)^2 exp(-log_sigma_j)
//   kl           S = -KL(token || key)
//   js           S = -(KL(token || M) + KL(key || M)) / 2,  M the Gaussian of mean and variance half way
//   hellinger    S = -sqrt(1 - exp(-B) + 1e-6)
//   wasserstein  S = -sqrt(sum_j (m_tj - m_ej)^2 + (s_tj - s_ej)^2 + 1e-6)
// Variances are v = max(exp(log_var), 1e-6), s = sqrt(v). Both js and hellinger are functions of
//   B = sum_j log1p((s_t - s_e)^2 / (2 s_t s_e)) / 2 + (m_t - m_e)^2 / (4 (v_t + v_e)):   js is -B.
#pragma once

#include "core/context.h"
#include "core/prototype_metric.h"

namespace switchyard::ops {

// score_TE set.
void prototype_similarity_forward(Tensor score_TE, GaussianRows token_Td, GaussianRows key_Ed,
                                  const PrototypeMetric& metric, Context& ctx);

// dtoken_Td, dkey_Ed and metric.dlog_sigma_d are added to. A variance at the clamp has no gradient. Sums over
// tokens are made in fixed blocks, in ascending order.
void prototype_similarity_backward(GaussianRows dtoken_Td, GaussianRows dkey_Ed, Tensor dscore_TE,
                                   Tensor score_TE, GaussianRows token_Td, GaussianRows key_Ed,
                                   const PrototypeMetric& metric, Context& ctx);

}  // namespace switchyard::ops
