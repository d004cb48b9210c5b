#include "ops/token_rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "cuda_support.h"
#include "ops/elementwise.h"

namespace switchyard::test {
namespace {

struct Sizes {
  int places, place;
  std::int64_t tokens, slots, experts_each, width;
};
// Widths of packs and not; places whose sums are in registers and others; no token; more places than experts of
// a token.
const Sizes kSizes[] = {{1, 0, 5, 2, 3, 8},    {2, 1, 33, 3, 2, 260}, {3, 2, 9, 2, 1, 7},
                        {4, 0, 20, 4, 2, 64},  {8, 5, 17, 8, 2, 136}, {5, 3, 0, 2, 2, 16},
                        {32, 31, 6, 4, 1, 24}, {7, 6, 11, 40, 8, 520}};

// Rows of each place, where they are rounded to dtype.
struct Case {
  Case(const Sizes& s, DType of_rows) : sizes(s), dtype(of_rows), expert({s.tokens, s.slots}, DType::i32) {
    fill_int(expert, "expert", -s.experts_each, s.places * s.experts_each);
    for (std::int64_t k = 0; k < s.slots && s.tokens > 0; ++k) set(expert, k, -1);  // token 0 has none
  }
  bool has(std::int64_t t, int p) const {
    for (std::int64_t k = 0; k < sizes.slots; ++k) {
      const double e = expert[t * sizes.slots + k];
      if (e >= 0 && static_cast<std::int64_t>(e) / sizes.experts_each == p) return true;
    }
    return false;
  }
  double bytes() const {
    std::int64_t rows = 0;
    for (std::int64_t t = 0; t < sizes.tokens; ++t)
      for (int p = 0; p < sizes.places; ++p) rows += p != sizes.place && has(t, p);
    return static_cast<double>(rows * sizes.width * size_of(dtype));
  }
  ops::ExpertPlaces places() const { return {sizes.place, sizes.experts_each}; }
  Shape rows() const { return {sizes.places * sizes.tokens, sizes.width}; }
  Shape shape() const { return {sizes.tokens, sizes.width}; }

  Sizes sizes;
  DType dtype;
  OwnedTensor expert;
};

std::vector<Tensor> views(const std::vector<DeviceTensor>& tensors) {
  std::vector<Tensor> all;
  for (const DeviceTensor& tensor : tensors) all.push_back(tensor);
  return all;
}

template <class F>
void for_all_cases(F&& f) {
  for (const Sizes& s : kSizes)
    for (const DType dtype : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(::testing::Message()
                   << s.places << " places, " << s.tokens << " x " << s.width << ", " << name_of(dtype));
      f(Case(s, dtype));
    }
}

TEST(CudaTokenRows, EachRowIsWrittenWhereItIsNeededAndNowhereElse) {
  for_all_cases([](const Case& c) {
    DeviceContext ctx;
    const auto x = DeviceTensor::of(normal(c.shape(), DType::f32, "x"), c.dtype, ctx);
    const auto expert = DeviceTensor::of(c.expert, ctx), bytes = DeviceTensor::of(doubles({7}), ctx);
    std::vector<DeviceTensor> to;
    for (int p = 0; p < c.sizes.places; ++p) to.emplace_back(c.rows(), c.dtype, ctx);
    ops::cuda::spread_rows(views(to), bytes, x, expert, c.places(), ctx);
    const std::vector<double> rows = x.values();
    for (int p = 0; p < c.sizes.places; ++p) {
      const std::vector<double> found = to[static_cast<std::size_t>(p)].values();
      for (std::int64_t i = 0; i < c.rows().numel(); ++i) {
        const std::int64_t t = i / c.sizes.width - c.sizes.place * c.sizes.tokens, d = i % c.sizes.width;
        const bool comes = t >= 0 && t < c.sizes.tokens && c.has(t, p);
        const double value = found[static_cast<std::size_t>(i)];
        if (comes)
          EXPECT_EQ(value, rows[static_cast<std::size_t>(t * c.sizes.width + d)]);
        else
          EXPECT_TRUE(std::isnan(value)) << "row " << i / c.sizes.width << " of place " << p;
      }
    }
    EXPECT_EQ(bytes.values(), std::vector<double>{7 + c.bytes()});
  });
}

// The bits of ops::sum_by_halves over pieces with zeros where a place has no part; what is read there is NaN.
TEST(CudaTokenRows, SumsAreThoseByHalvesWithZerosOfThoseWithoutAPart) {
  for_all_cases([](const Case& c) {
    for (const bool adds : {false, true}) {
      DeviceContext ctx;
      const auto addend = DeviceTensor::of(normal(c.shape(), DType::f32, "addend"), c.dtype, ctx);
      const auto expert = DeviceTensor::of(c.expert, ctx), bytes = DeviceTensor::of(doubles({0}), ctx);
      std::vector<DeviceTensor> from;
      std::vector<OwnedTensor> with_zeros;
      for (int p = 0; p < c.sizes.places; ++p) {
        const OwnedTensor made = normal(c.rows(), DType::f32, "made" + std::to_string(p));
        with_zeros.emplace_back(c.shape(), DType::f32);
        for (std::int64_t i = 0; i < c.rows().numel(); ++i) {
          const std::int64_t t = i / c.sizes.width - c.sizes.place * c.sizes.tokens;
          const bool is_part = t >= 0 && t < c.sizes.tokens && c.has(t, p);
          if (t >= 0 && t < c.sizes.tokens)
            set(with_zeros.back(), t * c.sizes.width + i % c.sizes.width, is_part ? made[i] : 0);
          if (!is_part) set(made, i, std::numeric_limits<double>::quiet_NaN());
        }
        from.push_back(DeviceTensor::of(made, c.dtype, ctx));
      }
      std::vector<DeviceTensor> leaf;
      for (const OwnedTensor& one : with_zeros) leaf.push_back(DeviceTensor::of(one, c.dtype, ctx));
      const DeviceTensor out(c.shape(), c.dtype, ctx), expected(c.shape(), c.dtype, ctx);
      if (adds) copy(out, addend);
      const Tensor plus = adds ? out.view() : Tensor{};
      ops::cuda::sum_by_halves(expected, adds ? addend.view() : Tensor{}, views(leaf), ctx);
      ops::cuda::collect_rows(out, bytes, plus, views(from), expert, c.places(), ctx);
      EXPECT_EQ(out.values(), expected.values());
      EXPECT_EQ(bytes.values(), std::vector<double>{c.bytes()});
    }
  });
}

// The CPU's versions, in double, of the same rows: sums of at most 33 numbers of order one, which f32 rounds
// by 1e-7 each.
TEST(CudaTokenRows, TheCpuDoesTheSame) {
  for (const Sizes& s : kSizes) {
    const Case c(s, DType::f32);
    DeviceContext ctx;
    Context host;
    const OwnedTensor x = normal(c.shape(), DType::f64, "x"), sum(c.shape(), DType::f64), bytes = doubles({0});
    const auto x_there = DeviceTensor::of(x, DType::f32, ctx),
               bytes_there = DeviceTensor::of(doubles({0}), ctx);
    const auto expert = DeviceTensor::of(c.expert, ctx);
    const DeviceTensor sum_there(c.shape(), DType::f32, ctx);
    std::vector<DeviceTensor> there;
    std::vector<OwnedTensor> here;
    std::vector<Tensor> here_N;
    for (int p = 0; p < s.places; ++p) {
      there.emplace_back(c.rows(), DType::f32, ctx);
      here.emplace_back(c.rows(), DType::f64);
    }
    for (const OwnedTensor& one : here) here_N.push_back(one);
    ops::spread_rows(here_N, bytes, x, c.expert, c.places(), host);
    ops::collect_rows(sum, bytes, x, here_N, c.expert, c.places(), host);
    ops::cuda::spread_rows(views(there), bytes_there, x_there, expert, c.places(), ctx);
    ops::cuda::collect_rows(sum_there, bytes_there, x_there, views(there), expert, c.places(), ctx);
    const OwnedTensor found = sum_there.as_f64();
    for (std::int64_t i = 0; i < sum.numel(); ++i) EXPECT_NEAR(found[i], sum[i], 2e-5);
    EXPECT_EQ(2 * bytes_there.values()[0], bytes[0]) << "double is twice as wide";
  }
}

}  // namespace
}  // namespace switchyard::test
