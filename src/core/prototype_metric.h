// How alike a token and a prototype are, shared by the operator's contract and its backends.
#pragma once

#include <cstdint>

#include "core/tensor.h"

namespace switchyard {

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

  bool of_distributions() const { return switchyard::of_distributions(similarity); }
};

// Rows of diagonal Gaussians. log_var is read only where the metric is of distributions.
struct GaussianRows {
  Tensor mean;
  Tensor log_var{};
};

}  // namespace switchyard
