#include "ops/embedding.h"

#include <gtest/gtest.h>

#include "cuda_support.h"

namespace switchyard::test {
namespace {

struct Sizes {
  std::int64_t sequences, length, ahead;
};
// One position, nothing ahead in the sequence, no sequence, more positions than one block takes.
const Sizes kSizes[] = {{1, 1, 1}, {3, 5, 1}, {2, 5, 5}, {0, 4, 1}, {5, 7, 3}, {3, 700, 2}};

TEST(CudaShiftTokens, EqualsTheCpu) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(::testing::Message() << s.sequences << " x " << s.length << ", " << s.ahead << " ahead");
    DeviceContext ctx;
    Context host_ctx;
    const Shape shape{s.sequences * s.length};
    // Tokens and targets that are missing here and there, and documents that begin at all places of a sequence.
    const OwnedTensor token(shape, DType::i32), target(shape, DType::i32), kv_begin(shape, DType::i32);
    fill_int(token, "token", -1, 6);
    fill_int(target, "target", -1, 6);
    fill_int(kv_begin, "kv_begin", 0, s.length);
    const OwnedTensor next(shape, DType::i32), next_target(shape, DType::i32);
    ops::shift_tokens(next, next_target, token, target, kv_begin, s.length, s.ahead, host_ctx);

    const DeviceTensor device_next(shape, DType::i32, ctx), device_next_target(shape, DType::i32, ctx);
    ops::cuda::shift_tokens(device_next, device_next_target, DeviceTensor::of(token, ctx),
                            DeviceTensor::of(target, ctx), DeviceTensor::of(kv_begin, ctx), s.length, s.ahead,
                            ctx);
    EXPECT_EQ(device_next.values(), values(next));
    EXPECT_EQ(device_next_target.values(), values(next_target));
  }
}

}  // namespace
}  // namespace switchyard::test
