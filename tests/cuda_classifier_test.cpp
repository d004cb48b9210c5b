#include "ops/classifier.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "cuda_precisions.h"
#include "cuda_support.h"
#ifdef SWITCHYARD_SIMT
#include "engine.h"
#endif

namespace switchyard::test {
namespace {

struct Sizes {
  std::int64_t tokens, width, vocab, margin;
};

// About one target in eight is missing.
OwnedTensor random_targets(const Sizes& s) {
  OwnedTensor target({s.tokens}, DType::i32);
  fill_int(target, "target", -std::max<std::int64_t>(1, s.vocab / 8), s.vocab);
  for (std::int64_t t = 0; t < s.tokens; ++t)
    if (target[t] < 0) set(target, t, -1);
  return target;
}

class CudaClassifierTypes : public ::testing::TestWithParam<Precision> {
 protected:
  CudaClassifierTypes() { ctx.matmul = GetParam().matmul; }
  DType dtype() const { return GetParam().dtype; }

  DeviceContext ctx;
  Context host_ctx;
};

OwnedTensor f64_of(const std::vector<double>& values, Shape shape) {
  OwnedTensor tensor(shape, DType::f64);
  fill(tensor, values);
  return tensor;
}
double largest(const Tensor& tensor) {
  double most = 0;
  for (double value : values(tensor)) most = std::max(most, std::abs(value));
  return most;
}

// A row's block reads 2048 logits at a time, 8 a thread: vocabularies on both sides of both.
const Sizes kSizes[] = {{0, 4, 8, 0},   {1, 1, 1, 0},   {1, 1, 2, 3},    {3, 5, 3, 5},
                        {9, 33, 50, 1}, {65, 8, 24, 8}, {130, 16, 8, 8}, {2, 3, 2051, 3}};

TEST_P(CudaClassifierTypes, EqualsTheCpu) {
  const double dloss = 0.75;
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(::testing::Message() << s.tokens << " tokens, vocabulary " << s.vocab);
    // Values that are bfloat16 already: products of bf16 operands are those of the reference.
    const auto rounded = [&](std::int64_t rows, std::int64_t columns, const char* name) {
      const OwnedTensor tensor = normal({rows, columns}, DType::bf16, name);
      return f64_of(values(tensor), {rows, columns});
    };
    const OwnedTensor x64 = rounded(s.tokens, s.width, "x"), weight64 = rounded(s.vocab, s.width, "weight"),
                      dweight64 = rounded(s.vocab, s.width, "dweight"), target64 = random_targets(s);
    const auto x = DeviceTensor::of(x64, dtype(), ctx, s.margin),
               weight = DeviceTensor::of(weight64, dtype(), ctx, s.margin),
               dweight = DeviceTensor::of(dweight64, DType::f32, ctx, s.margin),
               target = DeviceTensor::of(target64, ctx);
    const auto dx = s.margin > 0 ? DeviceTensor::strided(s.tokens, s.width, dtype(), ctx, s.margin)
                                 : DeviceTensor({s.tokens, s.width}, dtype(), ctx);
    const DeviceTensor loss({s.tokens}, DType::f32, ctx), loss_alone({s.tokens}, DType::f32, ctx);
    const OwnedTensor loss64({s.tokens}, DType::f64), dx64({s.tokens, s.width}, DType::f64);
    ops::classifier_forward_backward(loss64, dx64, dweight64, x64, weight64, target64, dloss, host_ctx);
    ops::cuda::classifier_forward(loss_alone, x, weight, target, ctx);
    ops::cuda::classifier_forward_backward(loss, dx, dweight, x, weight, target, dloss, ctx);

    // Logits reach 20 and are off by 2e-6, which is what losses and, relatively, probabilities are off by.
    EXPECT_TRUE(all_near(loss.values(), values(loss64), 0, 6e-6));
    EXPECT_EQ(loss.values(), loss_alone.values());
    // A row of dz sums to 2 dloss at most in absolute values, a column to 2 dloss a token; in bf16 each is
    // rounded by 2^-9 of itself before it is multiplied, and dx is once more.
    const bool bf16 = GetParam().matmul == MatmulType::bf16;
    const double dz_error = bf16 ? 0x1p-9 : 6e-6, last = dtype() == DType::bf16 ? 0x1p-8 : 0;
    EXPECT_TRUE(all_near(dx.values(), values(dx64), last, 2 * dloss * dz_error * largest(weight64) + 1e-6));
    const double tokens_of_a_word =
        std::ceil(static_cast<double>(2 * s.tokens) / static_cast<double>(s.vocab)) + 2;
    EXPECT_TRUE(all_near(dweight.values(), values(dweight64), 1e-6,
                         2 * dloss * tokens_of_a_word * dz_error * largest(x64) + 1e-6));
    EXPECT_TRUE(s.margin == 0 || (dx.margins_untouched() && dweight.margins_untouched()));
  }
}

TEST_P(CudaClassifierTypes, ChunksOfRowsJoin) {
  const Sizes s{11, 6, 40, 0};
  const auto x = DeviceTensor::of(normal({s.tokens, s.width}, DType::f64, "x"), dtype(), ctx),
             weight = DeviceTensor::of(normal({s.vocab, s.width}, DType::f64, "weight"), dtype(), ctx),
             target = DeviceTensor::of(random_targets(s), ctx);
  struct Results {
    std::vector<double> loss, dx, dweight;
  };
  const auto run = [&](std::int64_t chunk_rows) {
    const DeviceTensor loss({s.tokens}, DType::f32, ctx), loss_alone({s.tokens}, DType::f32, ctx),
        dx({s.tokens, s.width}, dtype(), ctx);
    const auto dweight = DeviceTensor::of(normal({s.vocab, s.width}, DType::f32, "dweight"), ctx);
    ops::cuda::classifier_forward_in_chunks(loss_alone, x, weight, target, chunk_rows, ctx);
    ops::cuda::classifier_forward_backward_in_chunks(loss, dx, dweight, x, weight, target, 0.5, chunk_rows,
                                                     ctx);
    EXPECT_EQ(loss.values(), loss_alone.values());
    return Results{loss.values(), dx.values(), dweight.values()};
  };
  const Results whole = run(s.tokens);
  for (std::int64_t chunk_rows : {1, 4, 10}) {
    SCOPED_TRACE(::testing::Message() << "chunks of " << chunk_rows);
    const Results joined = run(chunk_rows);
    EXPECT_EQ(joined.loss, whole.loss);
    EXPECT_EQ(joined.dx, whole.dx);
    EXPECT_TRUE(all_near(joined.dweight, whole.dweight, 0, 1e-5));  // some roundings of numbers of order ten
  }
}

TEST(CudaClassifier, ChunksFitTheVocabularyAndTheDevice) {
  constexpr std::int64_t kGB = 1'000'000'000;
  const auto rows = [](std::int64_t vocab_size, std::int64_t memory_bytes) {
    return ops::cuda::classifier_chunk_rows(1 << 20, vocab_size, memory_bytes);
  };
  EXPECT_EQ(ops::cuda::classifier_chunk_rows(100, 50, kGB), 100);
  EXPECT_EQ(rows(1 << 14, kGB), 1 << 12);
  EXPECT_EQ(rows(1 << 13, kGB), 1 << 13);
  EXPECT_EQ(rows(150'000, 24 * kGB), 1024);
  EXPECT_EQ(rows(150'000, 42 * kGB), 2048);
  EXPECT_EQ(rows(150'000, 80 * kGB), 4096);
}

TEST_P(CudaClassifierTypes, RowsWithoutTargetGiveNothing) {
  // The logits of the row without a target are infinities and NaN.
  const OwnedTensor x = normal({3, 2}, DType::f32, "x"), weight = normal({5, 2}, DType::f32, "weight", 3.0);
  set(x, 2, 3e38), set(x, 3, -3e38);
  set(weight, 0, 100), set(weight, 1, 100);
  const auto device_x = DeviceTensor::of(x, dtype(), ctx),
             device_weight = DeviceTensor::of(weight, dtype(), ctx),
             target = DeviceTensor::of(ints({1, -1, 4}), ctx),
             dweight = DeviceTensor::of(normal({5, 2}, DType::f32, "dweight"), ctx);
  const DeviceTensor loss({3}, DType::f32, ctx), dx({3, 2}, dtype(), ctx);
  ops::cuda::classifier_forward_backward(loss, dx, dweight, device_x, device_weight, target, 0.7, ctx);
  EXPECT_EQ(loss.values()[1], 0);
  EXPECT_EQ(dx.values()[2], 0);
  EXPECT_EQ(dx.values()[3], 0);
  for (const std::vector<double>& all : {loss.values(), dx.values(), dweight.values()})
    for (double value : all) EXPECT_TRUE(std::isfinite(value));
}

TEST_P(CudaClassifierTypes, LargeLogitsStayFinite) {
  OwnedTensor x({4, 1}, DType::f32), weight({3, 1}, DType::f32), zeros({3, 1}, DType::f32);
  const double big = 0x1p100;
  fill(weight, {1, -1, 0.5});
  fill(x, {big, big, -big, -big});
  fill(zeros, {0, 0, 0});
  const auto device_x = DeviceTensor::of(x, dtype(), ctx),
             device_weight = DeviceTensor::of(weight, dtype(), ctx),
             target = DeviceTensor::of(ints({0, 2, 1, 0}), ctx), dweight = DeviceTensor::of(zeros, ctx);
  const DeviceTensor loss({4}, DType::f32, ctx), dx({4, 1}, dtype(), ctx);
  ops::cuda::classifier_forward_backward(loss, dx, dweight, device_x, device_weight, target, 1.0, ctx);
  EXPECT_EQ(loss.values(), (std::vector<double>{0, big / 2, 0, 2 * big}));
  // dz is zero where the target wins, else 1 at the winner and -1 at the target.
  EXPECT_EQ(dx.values(), (std::vector<double>{0, 0.5, 0, -2}));
  EXPECT_EQ(dweight.values(), (std::vector<double>{2 * big, -big, -big}));
}

#ifdef SWITCHYARD_SIMT
TEST_P(CudaClassifierTypes, SameBitsInAnyOrderOfBlocks) {
  const Sizes s{20, 9, 140, 0};
  const auto x = DeviceTensor::of(normal({s.tokens, s.width}, DType::f64, "x"), dtype(), ctx),
             weight = DeviceTensor::of(normal({s.vocab, s.width}, DType::f64, "weight"), dtype(), ctx),
             target = DeviceTensor::of(random_targets(s), ctx);
  const auto run = [&](simt::BlockOrder order) {
    simt::set_block_order(order);
    const DeviceTensor loss({s.tokens}, DType::f32, ctx), dx({s.tokens, s.width}, dtype(), ctx);
    const auto dweight = DeviceTensor::of(normal({s.vocab, s.width}, DType::f32, "dweight"), ctx);
    ops::cuda::classifier_forward_backward(loss, dx, dweight, x, weight, target, 0.5, ctx);
    simt::set_block_order(simt::BlockOrder::ascending);
    return std::vector{loss.values(), dx.values(), dweight.values()};
  };
  EXPECT_EQ(run(simt::BlockOrder::ascending), run(simt::BlockOrder::descending));
}
#endif

INSTANTIATE_TEST_SUITE_P(Types, CudaClassifierTypes, ::testing::ValuesIn(kPrecisions),
                         [](const auto& instance) { return std::string(instance.param.name); });

}  // namespace
}  // namespace switchyard::test
