#include "ops/embedding.h"

#include <gtest/gtest.h>

#include "cuda_support.h"

#ifdef SWITCHYARD_SIMT
#include "engine.h"
#endif

namespace switchyard::test {
namespace {

struct Case {
  std::int64_t tokens, width, vocabulary;
  std::int64_t margin;  // > 0: strided rows; 8 keeps them at multiples of 16 bytes
};
// No tokens, one, blocks with several kinds of tokens, more tokens than a block looks at in one step; widths
// with and without whole packs and beyond a warp's.
const Case kCases[] = {{0, 8, 3, 0},     {1, 1, 1, 0},    {9, 17, 5, 5},
                       {40, 136, 70, 8}, {130, 24, 3, 3}, {1100, 8, 2000, 0}};

class CudaEmbedding : public ::testing::TestWithParam<DType> {
 protected:
  // From -1, which is padding, to vocabulary - 1.
  static OwnedTensor tokens(const Case& c) {
    OwnedTensor token({c.tokens}, DType::i32);
    fill_int(token, "token", -1, c.vocabulary);
    return token;
  }
  static OwnedTensor as_f32(const DeviceTensor& tensor) {
    OwnedTensor host(tensor.view().shape(), DType::f32);
    fill(host, tensor.values());
    return host;
  }
};

TEST_P(CudaEmbedding, ForwardMovesRows) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(::testing::Message() << c.tokens << " x " << c.width << " of " << c.vocabulary);
    DeviceContext ctx;
    Context host_ctx;
    const OwnedTensor token = tokens(c), expected({c.tokens, c.width}, DType::f32);
    const auto weight =
        DeviceTensor::of(normal({c.vocabulary, c.width}, DType::f64, "weight"), GetParam(), ctx);
    const auto out = c.margin > 0 ? DeviceTensor::strided(c.tokens, c.width, GetParam(), ctx, c.margin)
                                  : DeviceTensor({c.tokens, c.width}, GetParam(), ctx);
    ops::embedding_forward(expected, token, as_f32(weight), host_ctx);
    ops::cuda::embedding_forward(out, DeviceTensor::of(token, ctx), weight, ctx);
    EXPECT_EQ(out.values(), values(expected));
    EXPECT_TRUE(out.margins_untouched());
  }
}

// The sums are made in float32 in the order of the CPU: the same bits, also of a bf16 gradient.
TEST_P(CudaEmbedding, BackwardEqualsTheCpuBitForBit) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(::testing::Message() << c.tokens << " x " << c.width << " of " << c.vocabulary);
    DeviceContext ctx;
    Context host_ctx;
    const OwnedTensor token_host = tokens(c);
    const auto token = DeviceTensor::of(token_host, ctx);
    const auto dout =
        DeviceTensor::of(normal({c.tokens, c.width}, DType::f64, "dout"), GetParam(), ctx, c.margin);
    const auto dweight =
        DeviceTensor::of(normal({c.vocabulary, c.width}, DType::f32, "start"), DType::f32, ctx, c.margin);
    const OwnedTensor expected = as_f32(dweight);
    ops::embedding_backward(expected, as_f32(dout), token_host, host_ctx);
#ifdef SWITCHYARD_SIMT
    simt::set_block_order(c.tokens % 2 ? simt::BlockOrder::descending : simt::BlockOrder::ascending);
#endif
    ops::cuda::embedding_backward(dweight, dout, token, ctx);
#ifdef SWITCHYARD_SIMT
    simt::set_block_order(simt::BlockOrder::ascending);
#endif
    EXPECT_EQ(dweight.values(), values(expected));
    EXPECT_TRUE(dweight.margins_untouched());
  }
}

// One kind of token for all positions but a few: its block's room fills up several times, and of the tokens
// that it sorts smaller and greater ones, and more of the same, stand on both sides. With and without packs.
TEST_P(CudaEmbedding, OneTokenManyTimes) {
  constexpr std::int64_t kTokens = 3300;
  for (const std::int64_t width : {3, 72}) {
    DeviceContext ctx;
    Context host_ctx;
    OwnedTensor token({kTokens}, DType::i32);
    for (std::int64_t t = 0; t < kTokens; ++t)
      set(token, t, t % 7 == 3 ? 512 : t % 100 == 0 ? -1 : t % 11 == 5 ? 1536 : 1024);
    const auto dout = DeviceTensor::of(normal({kTokens, width}, DType::f64, "dout"), GetParam(), ctx);
    const auto dweight = DeviceTensor::of(normal({1537, width}, DType::f32, "start"), ctx);
    const OwnedTensor expected = as_f32(dweight);
    ops::embedding_backward(expected, as_f32(dout), token, host_ctx);
    ops::cuda::embedding_backward(dweight, dout, DeviceTensor::of(token, ctx), ctx);
    EXPECT_EQ(dweight.values(), values(expected)) << width;
  }
}

INSTANTIATE_TEST_SUITE_P(Types, CudaEmbedding, ::testing::Values(DType::f32, DType::bf16),
                         [](const auto& instance) { return name_of(instance.param); });

}  // namespace
}  // namespace switchyard::test
