// An analytic gradient against central finite differences, in double.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "tensors.h"

namespace switchyard::test {

// For inputs, gradients and third derivatives of order one: the central difference is off by step^2 / 6 * f'''
// ~ 2e-11 and, by rounding of the loss, by about 1e-16 * (sum of |terms|) / step ~ 1e-9 for some hundred terms.
// A wrong gradient is off by order one. Scale `absolute` with the loss where it is much larger.
struct GradientTolerance {
  double step = 1e-5;
  double relative = 1e-6;
  double absolute = 1e-8;
  std::int64_t max_elements = 2000;  // of a larger tensor, this many elements, spread evenly, are checked
};

// Compares analytic[i] with d loss / d input[i]. `loss` computes the scalar anew from the input as it then
// stands (an f64 tensor; each element is moved and put back). Reports the worst element.
inline ::testing::AssertionResult gradient_matches(const Tensor& input, const std::vector<double>& analytic,
                                                   const std::function<double()>& loss,
                                                   const GradientTolerance& tolerance = {}) {
  if (input.dtype() != DType::f64) return ::testing::AssertionFailure() << "gradients are checked in f64";
  if (static_cast<std::int64_t>(analytic.size()) != input.numel() || input.numel() == 0) {
    return ::testing::AssertionFailure()
           << analytic.size() << " gradients for " << input.numel() << " elements";
  }
  const std::int64_t count = std::min(input.numel(), tolerance.max_elements);
  double worst_excess = -1, worst_numeric = 0;
  std::int64_t worst = 0;
  for (std::int64_t n = 0; n < count; ++n) {
    const std::int64_t i = n * input.numel() / count;
    const double original = get(input, i);
    set(input, i, original + tolerance.step);
    const double above = loss();
    set(input, i, original - tolerance.step);
    const double below = loss();
    set(input, i, original);
    const double numeric = (above - below) / (2 * tolerance.step);
    const double given = analytic[static_cast<std::size_t>(i)];
    const double allowed =
        tolerance.absolute + tolerance.relative * std::max(std::abs(numeric), std::abs(given));
    const double excess = std::abs(numeric - given) / allowed;
    if (excess <= worst_excess) continue;
    worst_excess = excess, worst_numeric = numeric, worst = i;
    if (std::isnan(excess)) break;  // nothing is worse
  }
  if (worst_excess <= 1) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << "element " << worst << " of " << input.shape().to_string() << ": analytic gradient "
         << analytic[static_cast<std::size_t>(worst)] << ", finite differences " << worst_numeric << ", "
         << worst_excess << " times the tolerance";
}
inline ::testing::AssertionResult gradient_matches(const Tensor& input, const Tensor& analytic,
                                                   const std::function<double()>& loss,
                                                   const GradientTolerance& tolerance = {}) {
  return gradient_matches(input, values(analytic), loss, tolerance);
}

}  // namespace switchyard::test
