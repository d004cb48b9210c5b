// How far a sum of products in float32 may be from the exact one, whatever its order.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "tensors.h"

namespace switchyard::test {

constexpr double kFloatUnit = 0x1p-24;  // the largest relative error of one rounding

// Each element of `actual`, a sum of `terms` products, within (terms + 2) * 2^-24 * magnitude of `exact`, where
// `magnitude` is the sum of the products' absolute values: each partial sum and each product is rounded once,
// and so were the two factors of each product.
inline ::testing::AssertionResult within_rounding(const std::vector<double>& actual,
                                                  const std::vector<double>& exact,
                                                  const std::vector<double>& magnitude, std::int64_t terms) {
  if (actual.size() != exact.size() || actual.size() != magnitude.size())
    return ::testing::AssertionFailure() << actual.size() << " elements, expected " << exact.size();
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double allowed = (static_cast<double>(terms) + 2) * kFloatUnit * magnitude[i];
    if (!(std::abs(actual[i] - exact[i]) <= allowed)) {
      return ::testing::AssertionFailure() << "element " << i << " is " << actual[i] << ", exactly " << exact[i]
                                           << ", may be off by " << allowed;
    }
  }
  return ::testing::AssertionSuccess();
}

}  // namespace switchyard::test
