#include "ops/routing.h"

#include <gtest/gtest.h>

#include <cmath>

#include "poisoned_context.h"
#include "tensors.h"

namespace switchyard::test {
namespace {

TEST(Histogram, InfiniteGapsBelongToTheOuterBins) {
  PoisonedContext ctx;
  OwnedTensor score({4, 2}, DType::f32), value({2}, DType::f32), count({2, 2 * ops::kGapBins}, DType::f64);
  fill(score, {INFINITY, -INFINITY, 1, 1, -INFINITY, INFINITY, 3e38, -3e38});
  fill(value, {1, 1});
  const OwnedTensor token = ints({0, 0, 0, -1});
  ops::score_gap_histogram(count, score, value, token, ctx);
  std::vector<double> expected(static_cast<std::size_t>(4 * ops::kGapBins));
  for (const std::int64_t e : {0, 1}) {
    expected[static_cast<std::size_t>(e * 2 * ops::kGapBins)] = 1;                  // minus infinity
    expected[static_cast<std::size_t>(e * 2 * ops::kGapBins + ops::kGapBins)] = 1;  // a gap of 0
    expected[static_cast<std::size_t>((e + 1) * 2 * ops::kGapBins - 1)] = 1;        // infinity
  }
  EXPECT_EQ(values(count), expected);
}

}  // namespace
}  // namespace switchyard::test
