#include "cuda/noise.h"

#include <gtest/gtest.h>

#include "cuda_support.h"
#include "ops/noise.h"

namespace switchyard::test {
namespace {

struct Case {
  std::int64_t rows, width, margin, first_row;  // margin > 0: strided rows
};
// No rows, one element, several blocks, an index beyond 32 bits.
const Case kCases[] = {
    {0, 4, 0, 0}, {1, 1, 0, 0}, {5, 17, 5, 3}, {40, 64, 0, 1000}, {3, 8, 3, std::int64_t{1} << 33}};

TEST(CudaNoise, EqualsTheCpu) {
  const Rng rng(7, RngPurpose::router_noise, (std::uint64_t{5} << 32) + 9);
  for (const Case& c : kCases) {
    SCOPED_TRACE(::testing::Message() << c.rows << " x " << c.width << " from row " << c.first_row);
    DeviceContext ctx;
    Context host_ctx;
    const OwnedTensor host = normal({c.rows, c.width}, DType::f32, "x");
    const auto x = DeviceTensor::of(host, DType::f32, ctx, c.margin);
    ops::add_normal(host, rng, c.first_row, 0.3, host_ctx);
    cuda::add_normal(x, rng, c.first_row, 0.3, ctx);
    // The noise is at most 0.3 * 6.7 and rounded to float32, and so is the sum; another logarithm or cosine may
    // move each rounding by one unit.
    EXPECT_TRUE(all_near(x.values(), values(host), 0x1p-23, 0x1p-22));
    EXPECT_TRUE(x.margins_untouched());
  }
}

}  // namespace
}  // namespace switchyard::test
