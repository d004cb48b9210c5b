#include "ops/overlap.h"

#include <gtest/gtest.h>

#include "cuda_support.h"

namespace switchyard::test {
namespace {

struct Sizes {
  std::int64_t tokens, slots, width, margin;
};
// One of each, fewer columns than a warp has lanes and more, more tokens than a block has warps, more slots
// than lanes, strided rows.
const Sizes kSizes[] = {{1, 1, 1, 0}, {9, 2, 17, 5}, {21, 3, 264, 8}, {2, 40, 33, 3}, {0, 2, 8, 0}};

class CudaExpertOverlap : public ::testing::TestWithParam<DType> {};

TEST_P(CudaExpertOverlap, EqualsTheCpu) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(::testing::Message() << s.tokens << " tokens, " << s.slots << " slots, width " << s.width);
    DeviceContext ctx;
    Context host_ctx;
    const OwnedTensor slot_row({s.tokens, s.slots}, DType::i32);
    for (std::int64_t i = 0; i < slot_row.numel(); ++i)
      set(slot_row, i, i % 5 == 3 ? -1 : static_cast<double>(i));
    const Shape rows{s.tokens * s.slots, s.width};
    const DeviceTensor row = DeviceTensor::of(normal(rows, DType::f64, "row"), GetParam(), ctx, s.margin),
                       drow = DeviceTensor::of(normal(rows, DType::f64, "drow"), GetParam(), ctx, s.margin),
                       device_slots = DeviceTensor::of(slot_row, ctx), sum({1}, DType::f64, ctx);
    const OwnedTensor row64 = row.as_f64(), drow64 = drow.as_f64(), sum64({1}, DType::f64);
    ops::expert_overlap_forward(sum64, row64, slot_row, host_ctx);
    ops::expert_overlap_backward(drow64, row64, slot_row, 0.3, host_ctx);
    ops::cuda::expert_overlap_forward(sum, row, device_slots, ctx);
    ops::cuda::expert_overlap_backward(drow, row, device_slots, 0.3, ctx);
    // Products of up to 264 numbers in f32, a pair's error 1e-5 of its cosine at most.
    EXPECT_TRUE(all_near(sum.values(), values(sum64), 1e-5, 1e-6));
    // bf16: what is stored is rounded to 8 bits.
    EXPECT_TRUE(all_near(drow.values(), values(drow64), GetParam() == DType::bf16 ? 0x1p-8 : 2e-6,
                         GetParam() == DType::bf16 ? 1e-5 : 2e-6));
    EXPECT_TRUE(drow.margins_untouched());
  }
}

INSTANTIATE_TEST_SUITE_P(Types, CudaExpertOverlap, ::testing::Values(DType::f32, DType::bf16),
                         [](const auto& instance) { return name_of(instance.param); });

}  // namespace
}  // namespace switchyard::test
