#include "ops/elementwise.h"

#include <gtest/gtest.h>

#include "core/rng.h"
#include "cuda_support.h"

namespace switchyard::test {
namespace {

struct Case {
  std::int64_t rows, width, margin, first_sequence, seq_len;  // margin > 0: strided rows
};
// No rows, one element, several blocks, an index beyond 32 bits.
const Case kCases[] = {
    {0, 4, 0, 0, 1}, {1, 1, 0, 0, 1}, {5, 17, 5, 3, 1}, {40, 64, 0, 25, 40}, {3, 8, 3, 1 << 20, 1 << 13}};

TEST(CudaNoise, EqualsTheCpu) {
  const Rng rng(7, RngPurpose::router_noise, 0);
  for (const Case& c : kCases) {
    SCOPED_TRACE(::testing::Message() << c.rows << " x " << c.width << " from sequence " << c.first_sequence);
    DeviceContext ctx;
    Context host_ctx;
    const OwnedTensor host = normal({c.rows, c.width}, DType::f32, "x");
    const auto x = DeviceTensor::of(host, DType::f32, ctx, c.margin);
    const OwnedTensor place = ints({5000, static_cast<double>(c.first_sequence)});
    const auto device_place = DeviceTensor::of(place, ctx);
    const OwnedTensor by_hand({c.rows, c.width}, DType::f32);
    const Rng stream(7, RngPurpose::router_noise, (std::uint64_t{5000} << 20) + 9);
    for (std::int64_t i = 0; i < host.numel(); ++i) {
      const auto index = static_cast<std::uint64_t>(c.first_sequence * c.seq_len * c.width + i);
      set(by_hand, i, host[i] + static_cast<double>(static_cast<float>(0.3 * stream.normal(index))));
    }
    ops::add_normal(host, rng, {place, 9, c.seq_len}, 0.3, host_ctx);
    ops::cuda::add_normal(x, rng, {device_place, 9, c.seq_len}, 0.3, ctx);
    // A function of step, layer and place alone. Another logarithm or cosine may move a rounding by one unit.
    EXPECT_TRUE(all_near(values(host), values(by_hand), 0x1p-23, 0x1p-22));
    // The noise is at most 0.3 * 6.7 and rounded to float32, and so is the sum.
    EXPECT_TRUE(all_near(x.values(), values(host), 0x1p-23, 0x1p-22));
    EXPECT_TRUE(x.margins_untouched());
  }
}

}  // namespace
}  // namespace switchyard::test
