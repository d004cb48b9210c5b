// How hard a token is: the estimators of dynamic_k. A new one is a function and a line of complexity.cpp.
//   T tokens, D hidden size, E experts, V vocabulary
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
  Tensor token_T{};
  // Where ComplexityEstimator::by_token; value_V is 0 for a token of which nothing is known, which has mean_1.
  Tensor value_V{}, mean_1{};
  Tensor known_T{};  // i32, set: the token, or -1 where nothing is known; the running mean is of the others
};

struct ComplexityEstimator {
  std::string_view name;
  void (*raw)(Tensor raw_T, const ComplexityInput& input, Context& ctx);  // raw_T set
  bool needs_attention_entropy = false;
  // Compared with a constant of the user's: 0 or 1. Otherwise measured against a running mean and variance.
  bool thresholded = false;
  // Looks up what backward passes have left for the token: the mean norm of the loss's gradient at the router's
  // input.
  bool by_token = false;
};

std::span<const ComplexityEstimator> complexity_estimators();
// Throws std::logic_error where there is none of that name.
const ComplexityEstimator& complexity_estimator(std::string_view name);

}  // namespace switchyard::router
