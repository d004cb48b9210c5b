// How hard a token is: the estimators of dynamic_k. A new one is a function and a line of complexity.cpp.
//   T tokens, D hidden size, E experts
#pragma once

#include <span>
#include <string_view>

#include "core/context.h"

namespace switchyard::router {

// What an estimator may look at.
struct ComplexityInput {
  Tensor x_TD;
  Tensor logit_TE, prob_TE, lse_T;  // of the router
  Tensor attention_entropy_T;       // not defined where the estimator does not need it
};

struct ComplexityEstimator {
  std::string_view name;
  void (*raw)(Tensor raw_T, const ComplexityInput& input, Context& ctx);  // raw_T set
  bool needs_attention_entropy = false;
  // Compared with a constant of the user's: 0 or 1. Otherwise measured against a running mean and variance.
  bool thresholded = false;
};

std::span<const ComplexityEstimator> complexity_estimators();
// Throws std::logic_error where there is none of that name.
const ComplexityEstimator& complexity_estimator(std::string_view name);

}  // namespace switchyard::router
