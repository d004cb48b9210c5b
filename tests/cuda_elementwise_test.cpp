#include "ops/elementwise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "cuda_support.h"

#ifdef SWITCHYARD_SIMT
#include "engine.h"
#endif

namespace switchyard::test {
namespace {

double sum_of_squares(const Tensor& in, DeviceContext& ctx) {
  const DeviceTensor sum({1}, DType::f64, ctx);
  ops::cuda::sum_of_squares(sum, in, ctx);
  return sum.values()[0];
}

struct Sizes {
  std::int64_t rows, width, margin;  // margin > 0: strided rows; 8 keeps them at multiples of 16 bytes
};
// With and without whole packs, more packs than a block has threads, no rows at all.
const Sizes kSizes[] = {{1, 1, 0}, {3, 3, 0}, {5, 17, 5}, {3, 16, 3},   {9, 24, 8},
                        {2, 5, 8}, {0, 8, 0}, {0, 8, 8},  {33, 129, 0}, {40, 128, 8}};

DeviceTensor tensor_of(const Sizes& s, DType dtype, const DeviceContext& ctx) {
  return s.margin > 0 ? DeviceTensor::strided(s.rows, s.width, dtype, ctx, s.margin)
                      : DeviceTensor({s.rows, s.width}, dtype, ctx);
}
DeviceTensor normal_of(const Sizes& s, DType dtype, std::string_view name, const DeviceContext& ctx) {
  return DeviceTensor::of(normal({s.rows, s.width}, DType::f64, name, 1000.0), dtype, ctx, s.margin);
}

TEST(CudaElementwise, FillZeroSetsAllAndNothingElse) {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16, DType::i32}) {
    for (const Sizes& s : kSizes) {
      SCOPED_TRACE(::testing::Message() << s.rows << " x " << s.width << " margin " << s.margin);
      DeviceContext ctx;
      const auto out = tensor_of(s, dtype, ctx);
      ops::cuda::fill_zero(out, ctx);
      EXPECT_EQ(out.values(), std::vector<double>(static_cast<std::size_t>(s.rows * s.width), 0.0));
      EXPECT_TRUE(out.margins_untouched());
    }
  }
}

TEST(CudaElementwise, AccumulateAddsAMultiple) {
  for (const std::int64_t count : {0, 1, 3, 257, 1000}) {
    DeviceContext ctx;
    const OwnedTensor host = normal({count}, DType::f64, "sum"), value = normal({count}, DType::f64, "value");
    std::vector<double> expected = values(host);
    for (std::int64_t i = 0; i < count; ++i) expected[static_cast<std::size_t>(i)] += 0.3 * value[i];
    const auto sum = DeviceTensor::of(host, ctx);
    ops::cuda::accumulate(sum, DeviceTensor::of(value, ctx), 0.3, ctx);
    EXPECT_TRUE(all_near(sum.values(), expected, 1e-15, 1e-15)) << count;  // with or without a fused product
  }
}

TEST(CudaElementwise, CopyMovesBitsBetweenStrides) {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16, DType::i32}) {
    for (const Sizes& s : kSizes) {
      SCOPED_TRACE(::testing::Message() << s.rows << " x " << s.width << " margin " << s.margin);
      DeviceContext ctx;
      const auto in = normal_of(s, dtype, "in", ctx);
      const auto like = tensor_of(s, dtype, ctx), flat = tensor_of({s.rows, s.width, 0}, dtype, ctx);
      ops::cuda::copy(like, in, ctx);
      ops::cuda::copy(flat, in, ctx);
      EXPECT_EQ(like.values(), in.values());
      EXPECT_EQ(flat.values(), in.values());
      EXPECT_TRUE(like.margins_untouched());
    }
  }
}

TEST(CudaElementwise, AddAlsoIntoAnInput) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const Sizes& s : kSizes) {
      SCOPED_TRACE(::testing::Message() << s.rows << " x " << s.width << " margin " << s.margin);
      DeviceContext ctx;
      const auto a = normal_of(s, dtype, "a", ctx), b = normal_of({s.rows, s.width, 0}, dtype, "b", ctx);
      const auto out = tensor_of(s, dtype, ctx);
      std::vector<double> expected = a.values();
      const std::vector<double> addend = b.values();
      for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += addend[i];
      ops::cuda::add(out, a, b, ctx);
      // One rounding of the sum; in bf16 a second one.
      EXPECT_TRUE(all_near(out.values(), expected, dtype == DType::f32 ? 0x1p-24 : 0x1.001p-8, 0));
      EXPECT_TRUE(out.margins_untouched());
      ops::cuda::add(a, a, b, ctx);
      EXPECT_EQ(a.values(), out.values());
    }
  }
}

TEST(CudaElementwise, CopyConvertsBetweenFloatAndBf16) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(::testing::Message() << s.rows << " x " << s.width << " margin " << s.margin);
    DeviceContext ctx;
    const auto wide = normal_of(s, DType::f32, "in", ctx), as_bf16 = normal_of(s, DType::bf16, "in", ctx);
    const auto narrow = tensor_of(s, DType::bf16, ctx), flat = tensor_of({s.rows, s.width, 0}, DType::f32, ctx);
    ops::cuda::copy(narrow, wide, ctx);
    EXPECT_EQ(narrow.values(), as_bf16.values());  // rounded to the nearest, as the host does
    EXPECT_TRUE(narrow.margins_untouched());
    ops::cuda::copy(flat, narrow, ctx);
    EXPECT_EQ(flat.values(), as_bf16.values());  // every bf16 is a float
  }
}

TEST(CudaElementwise, AddOfFloatToBf16RoundsOnce) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(::testing::Message() << s.rows << " x " << s.width << " margin " << s.margin);
    DeviceContext ctx;
    const auto a = normal_of(s, DType::bf16, "a", ctx),
               b = normal_of({s.rows, s.width, 0}, DType::f32, "b", ctx);
    std::vector<double> expected = a.values();
    const std::vector<double> addend = b.values();
    for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += addend[i];
    ops::cuda::add(a, a, b, ctx);
    EXPECT_TRUE(all_near(a.values(), expected, 0x1.001p-8, 0));  // the sum in float32, then bf16's rounding
    EXPECT_TRUE(a.margins_untouched());
  }
}

// Around a pack, a block's packs and all blocks' packs at once.
const std::int64_t kCounts[] = {0, 1, 3, 17, 2047, 2049, 20001};

// Small integers: every partial sum is exact, so each element must be in it exactly once.
// Equal to the CPU's, bit for bit: the order is the definition's. bf16 is added in float and rounded once.
TEST(CudaElementwise, SumByHalvesEqualsTheCpu) {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16})
    for (const int n : {1, 2, 3, 5, 8, 13, 37})
      for (const std::int64_t count : {1, 17, 256, 1000})
        for (const bool with_addend : {false, true})
          for (const bool into_leaf : {false, true}) {
            SCOPED_TRACE(::testing::Message() << name_of(dtype) << " " << n << " x " << count);
            DeviceContext ctx;
            Context host_ctx;
            const DType exact = dtype == DType::f64 ? DType::f64 : DType::f32;
            std::vector<DeviceTensor> leaf_there;
            std::vector<OwnedTensor> leaf_here;
            std::vector<Tensor> leaves_there, leaves_here;
            const auto on_host = [&](const DeviceTensor& x) {
              OwnedTensor host({count}, exact);
              fill(host, x.values());
              return host;
            };
            for (int l = 0; l < n; ++l) {
              leaf_there.push_back(
                  DeviceTensor::of(normal({count}, DType::f64, "leaf" + std::to_string(l)), dtype, ctx));
              leaf_here.push_back(on_host(leaf_there.back()));
            }
            for (const auto& leaf : leaf_there) leaves_there.push_back(leaf);
            for (const auto& leaf : leaf_here) leaves_here.push_back(leaf);
            const auto addend_there = DeviceTensor::of(normal({count}, DType::f64, "addend"), dtype, ctx);
            const OwnedTensor addend_here = on_host(addend_there), expected({count}, exact);
            const DeviceTensor apart({count}, dtype, ctx);
            const DeviceTensor& sum = into_leaf ? leaf_there.back() : apart;
            ops::sum_by_halves(expected, with_addend ? addend_here.view() : Tensor{}, leaves_here, host_ctx);
            ops::cuda::sum_by_halves(sum, with_addend ? addend_there.view() : Tensor{}, leaves_there, ctx);
            const DeviceTensor rounded = DeviceTensor::of(expected, dtype, ctx);
            EXPECT_EQ(sum.values(), rounded.values());
          }
}

TEST(CudaElementwise, SumOfSquaresCountsEveryElementOnce) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const std::int64_t count : kCounts) {
      for (const std::int64_t first : {0, 1}) {  // the second start is no multiple of 16 bytes
        SCOPED_TRACE(::testing::Message() << count << " from " << first);
        DeviceContext ctx;
        OwnedTensor host({count + 1}, DType::f64);
        fill_int(host, "in", -9, 10);
        const auto in = DeviceTensor::of(host, dtype, ctx);
        const Tensor part = host.view().slice(first, count);
        EXPECT_EQ(sum_of_squares(in.view().slice(first, count), ctx), dot(part, part));
      }
    }
  }
}

TEST(CudaElementwise, SumOfSquaresIsMadeInDouble) {
  DeviceContext ctx;
  OwnedTensor in({4}, DType::f32);
  fill(in, {1e25, 1, 1, 1});  // its square is no float, and 1e25 itself is rounded to one
  EXPECT_NEAR(sum_of_squares(DeviceTensor::of(in, ctx), ctx) / 1e50, 1.0, 1e-6);
}

TEST(CudaElementwise, SumOfSquaresOfNonFiniteIsNonFinite) {
  DeviceContext ctx;
  const OwnedTensor in = normal({129}, DType::f32, "in");
  set(in, 77, std::numeric_limits<double>::quiet_NaN());
  EXPECT_TRUE(std::isnan(sum_of_squares(DeviceTensor::of(in, ctx), ctx)));
}

// Small integers: every sum is exact. A block beyond 2^20 elements, one of none, and two that overlap.
TEST(CudaElementwise, SquaresOfBlocksAndTheirSumEqualTheCpu) {
  DeviceContext ctx;
  Context host_ctx;
  const OwnedTensor in({(1 << 20) + 103}, DType::f32), block({4, 3}, DType::i32), square({4}, DType::f64),
      index({3}, DType::i32), sum({1}, DType::f64);
  fill_int(in, "in", -9, 10);
  fill(block, {0, 0, 7, 1, 3, 100, 0, 5, 0, 0, 5, 3000});
  fill(index, {3, 0, 1});
  ops::squares_of_blocks(square, in, block, host_ctx);
  ops::sum_at(sum, square, index, host_ctx);
  const DeviceTensor device_square({4}, DType::f64, ctx), device_sum({1}, DType::f64, ctx);
  ops::cuda::squares_of_blocks(device_square, DeviceTensor::of(in, ctx), DeviceTensor::of(block, ctx), ctx);
  ops::cuda::sum_at(device_sum, device_square, DeviceTensor::of(index, ctx), ctx);
  EXPECT_EQ(device_square.values(), values(square));
  EXPECT_EQ(device_sum.values(), values(sum));
}

TEST(CudaElementwise, SumOfSquaresHasTheSameBitsInAnyBlockOrder) {
  DeviceContext ctx;
  const OwnedTensor host = normal({20001}, DType::f32, "in");
  const auto in = DeviceTensor::of(host, ctx);
  const double sum = sum_of_squares(in, ctx);
  EXPECT_NEAR(sum, dot(host, host), 1e-9);  // 20,000 roundings of numbers of 20,000, in double: 4e-12 each
#ifdef SWITCHYARD_SIMT
  simt::set_block_order(simt::BlockOrder::descending);
  EXPECT_EQ(sum_of_squares(in, ctx), sum);
  simt::set_block_order(simt::BlockOrder::ascending);
#endif
}

}  // namespace
}  // namespace switchyard::test
