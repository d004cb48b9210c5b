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

#include <cstdint>

#include "ops/operator.h"

namespace switchyard::ops {

enum class PrototypeSimilarity : std::uint8_t { gaussian, mahalanobis, kl, js, hellinger, wasserstein };

// Whether rows are Gaussians with a variance of their own, or points.
constexpr bool of_distributions(PrototypeSimilarity similarity) {
  return similarity != PrototypeSimilarity::gaussian && similarity != PrototypeSimilarity::mahalanobis;
}

struct PrototypeMetric {
  PrototypeSimilarity similarity;
  double sigma = 1;       // of gaussian
  Tensor log_sigma_d{};   // of mahalanobis
  Tensor dlog_sigma_d{};  // of mahalanobis, for the backward pass

  bool of_distributions() const { return ops::of_distributions(similarity); }
};

// Rows of diagonal Gaussians. log_var is read only where the metric is of distributions.
struct GaussianRows {
  Tensor mean;
  Tensor log_var{};
};

// score_TE set.
SY_OPERATOR(prototype_similarity_forward, Tensor score_TE, GaussianRows token_Td, GaussianRows key_Ed,
            const PrototypeMetric& metric, Context& ctx);

// dtoken_Td, dkey_Ed and metric.dlog_sigma_d are added to. A variance at the clamp has no gradient. Sums over
// tokens are made in fixed blocks, in ascending order.
SY_OPERATOR(prototype_similarity_backward, GaussianRows dtoken_Td, GaussianRows dkey_Ed, Tensor dscore_TE,
            Tensor score_TE, GaussianRows token_Td, GaussianRows key_Ed, const PrototypeMetric& metric,
            Context& ctx);

}  // namespace switchyard::ops
