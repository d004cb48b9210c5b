#include "ops/routing.h"

#include <gtest/gtest.h>

#include "cuda_support.h"

namespace switchyard::test {
namespace {

struct Sizes {
  std::int64_t L, B, E;
};
// One of each, more experts than a block has threads, a number that fills no warp.
const Sizes kSizes[] = {{1, 1, 1}, {3, 2, 7}, {2, 5, 130}};

TEST(CudaBalanceLoss, EqualsTheCpuInEveryScope) {
  for (const BalanceScope scope :
       {BalanceScope::layer, BalanceScope::sequence, BalanceScope::global_batch, BalanceScope::model}) {
    for (const auto& [L, B, E] : kSizes) {
      SCOPED_TRACE(::testing::Message()
                   << "scope " << static_cast<int>(scope) << ", " << L << " x " << B << " x " << E);
      DeviceContext ctx;
      Context host_ctx;
      const OwnedTensor count({L, B, E}, DType::i32), tokens({B}, DType::i32), count_LE({L, E}, DType::f64),
          dprob({L, B, E}, DType::f64), value({3}, DType::f64);
      fill_int(count, "count", 0, 9);
      for (std::int64_t b = 0; b < B; ++b)
        set(tokens, b, b == 1 ? 0 : static_cast<double>(3 + b));  // one of padding
      fill_int(count_LE, "all", 0, 40);
      fill(value, {0.5, 0.25, 0.125});
      const OwnedTensor prob = normal({L, B, E}, DType::f64, "prob"),
                        prob2 = normal({L, B}, DType::f64, "prob2"), lse2 = normal({L, B}, DType::f64, "lse2");
      const BalanceLoss loss{.scope = scope,
                             .balance_coef = 0.3,
                             .z_coef = 0.1,
                             .variance_coef = 0.2,
                             .n_slots = 2,
                             .n_tokens = 40,
                             .n_sequences = 7};

      const DeviceTensor device_dprob({L, B, E}, DType::f64, ctx);
      const auto device_value = DeviceTensor::of(value, ctx), device_counts = DeviceTensor::of(count_LE, ctx),
                 device_count = DeviceTensor::of(count, ctx);
      ops::cuda::balance_loss(device_dprob, device_value, device_count, DeviceTensor::of(prob, ctx),
                              DeviceTensor::of(prob2, ctx), DeviceTensor::of(lse2, ctx),
                              DeviceTensor::of(tokens, ctx), device_counts, loss, ctx);
      ops::balance_loss(dprob, value, count, prob, prob2, lse2, tokens, count_LE, loss, host_ctx);
      EXPECT_TRUE(all_near(device_dprob.values(), values(dprob), 1e-14, 0));  // the same formula in double
      EXPECT_TRUE(all_near(device_value.values(), values(value), 1e-12,
                           1e-12));  // some thousand terms in another order

      ops::cuda::add_counts(device_counts, device_count, ctx);
      ops::add_counts(count_LE, count, host_ctx);
      EXPECT_EQ(device_counts.values(), values(count_LE));  // whole numbers
    }
  }
}

}  // namespace
}  // namespace switchyard::test
