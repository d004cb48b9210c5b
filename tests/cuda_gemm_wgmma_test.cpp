#include "cuda/gemm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "cuda_support.h"
#ifdef SWITCHYARD_SIMT
#include "engine.h"
#endif
#include "rounding_bound.h"

namespace switchyard::test {
namespace {

using ops::cuda::GemmLayout;

class CudaGemmWgmma : public ::testing::Test {
 protected:
  void SetUp() override {
    const DeviceTensor one({8, 8}, DType::bf16, ctx), other({8, 8}, DType::bf16, ctx);
    if (!ops::cuda::wgmma_multiply("test", GemmLayout::nt, one.view(), other.view(), other.view(), false,
                                   nullptr, ctx))
      GTEST_SKIP() << "the device has not compute capability 9.0";
  }
  void TearDown() override {
#ifdef SWITCHYARD_SIMT
    simt::capability = {9, 0, 2};
    simt::set_block_order(simt::BlockOrder::ascending);
#endif
  }
  DeviceContext ctx;
};

// Sizes of a product, m or (tn) k of each expert; without experts one product of all rows.
struct Case {
  GemmLayout layout;
  std::vector<std::int64_t> counts;
  bool grouped;
  std::int64_t spare_rows, other, n;  // other: k, or m of tn
};

// Operands as the kernel gets them, with NaN in rows of no expert and in weights of experts without rows; and
// the exact result, with the sum of the absolute values of each element's terms.
struct Problem {
  OwnedTensor offset, a, b, c, exact, magnitude;
  std::int64_t most_terms = 0;

  Problem(const Case& p, bool add)
      : offset({static_cast<std::int64_t>(p.counts.size()) + 1}, DType::i32),
        a({0, 1}, DType::f64),
        b({0, 1}, DType::f64),
        c({0, 1}, DType::f64),
        exact({0, 1}, DType::f64),
        magnitude({0, 1}, DType::f64) {
    const auto n_experts = static_cast<std::int64_t>(p.counts.size());
    std::int64_t routed = 0;
    set(offset, 0, 0);
    for (std::int64_t e = 0; e < n_experts; ++e) {
      routed += p.counts[static_cast<std::size_t>(e)];
      set(offset, e + 1, static_cast<double>(routed));
    }
    const std::int64_t rows = routed + p.spare_rows;
    const bool of_weight = p.layout == GemmLayout::tn;
    a = rounded({rows, p.other}, "a");
    poison(a.view().slice(routed, p.spare_rows));
    const auto each = [&](std::int64_t r, std::int64_t columns) {
      return p.grouped ? Shape{n_experts, r, columns} : Shape{r, columns};
    };
    if (of_weight) {
      b = rounded({rows, p.n}, "b");
      poison(b.view().slice(routed, p.spare_rows));
      c = rounded(each(p.other, p.n), "c");
    } else {
      b = rounded(p.layout == GemmLayout::nt ? each(p.n, p.other) : each(p.other, p.n), "b");
      c = rounded({rows, p.n}, "c");
    }
    exact = OwnedTensor(c.view().shape(), DType::f64);
    magnitude = OwnedTensor(c.view().shape(), DType::f64);
    fill(magnitude, std::vector<double>(static_cast<std::size_t>(c.view().numel()), 0.0));
    fill(exact, add ? values(c) : std::vector<double>(static_cast<std::size_t>(c.view().numel()), NAN));
    const std::vector<double> a_value = values(a), b_value = values(b);
    const auto index = [](std::int64_t i) { return static_cast<std::size_t>(i); };
    for (std::int64_t e = 0; e < n_experts; ++e) {
      const auto first = static_cast<std::int64_t>(get(offset, e)),
                 end = static_cast<std::int64_t>(get(offset, e + 1));
      if (first == end) {
        if (p.grouped && !of_weight) poison(b.view().slice(e, 1));
        continue;
      }
      const std::int64_t m_first = of_weight ? 0 : first, m_end = of_weight ? p.other : end;
      const std::int64_t k_first = of_weight ? first : 0, k_end = of_weight ? end : p.other;
      most_terms = std::max(most_terms, k_end - k_first);
      for (std::int64_t m = m_first; m < m_end; ++m) {
        for (std::int64_t n = 0; n < p.n; ++n) {
          const std::int64_t at = ((of_weight ? e * p.other : 0) + m) * p.n + n;
          double sum = add ? get(c, at) : 0, size = std::abs(sum);
          for (std::int64_t k = k_first; k < k_end; ++k) {
            const double x = a_value[index(of_weight ? k * p.other + m : m * p.other + k)];
            const double y = b_value[index(p.layout == GemmLayout::nt   ? (e * p.n + n) * p.other + k
                                           : p.layout == GemmLayout::nn ? (e * p.other + k) * p.n + n
                                                                        : k * p.n + n)];
            sum += x * y;
            size += std::abs(x * y);
          }
          set(exact, at, sum);
          set(magnitude, at, size);
        }
      }
    }
  }
  static OwnedTensor rounded(Shape shape, const char* name) {
    const OwnedTensor values_of(shape, DType::bf16);
    OwnedTensor result(shape, DType::f64);
    fill(values_of, values(normal(shape, DType::f64, name)));
    fill(result, values(values_of));
    return result;
  }
};

const char* name_of(GemmLayout layout) {
  return layout == GemmLayout::nt ? "nt" : layout == GemmLayout::nn ? "nn" : "tn";
}

// A tile is 128 x 128 or 128 x 256, a step 64 of K, the ring 6 or 4 steps: sizes on both sides of each. Experts
// without rows first, last and in between.
std::vector<Case> cases() {
  std::vector<Case> all;
  for (GemmLayout layout : {GemmLayout::nt, GemmLayout::nn, GemmLayout::tn}) {
    all.push_back({layout, {1}, false, 0, 8, 8});
    all.push_back({layout, {70}, false, 0, 264, 136});
    all.push_back({layout, {0, 1, 0, 0, 2}, true, 7, 8, 16});
    all.push_back({layout, {0, 1, 127, 0, 128, 129, 64}, true, 3, 40, 264});
    all.push_back({layout, {3, 0, 450, 65, 0}, true, 70, 456, 272});
  }
  // Columns that are no whole packs, no whole fours.
  for (const std::int64_t n : {36, 22, 270})
    all.push_back({GemmLayout::nt, {0, 1, 127, 0, 128}, true, 3, 40, n});
  return all;
}

TEST_F(CudaGemmWgmma, EqualsExactSums) {
  for (const Case& p : cases()) {
    for (const bool add : {false, true}) {
      for (const DType out : {DType::f32, DType::bf16}) {
        if (p.n > 200 && add != (out == DType::f32)) continue;  // small sizes have seen it
        SCOPED_TRACE(::testing::Message()
                     << name_of(p.layout) << ", " << p.counts.size() << " experts, " << p.other << " x " << p.n
                     << ", " << name_of(out) << ", added: " << add);
        const Problem problem(p, add);
        const bool of_weight = p.layout == GemmLayout::tn;
        const auto a = DeviceTensor::of(problem.a, DType::bf16, ctx, 8),
                   b = of_weight || !p.grouped ? DeviceTensor::of(problem.b, DType::bf16, ctx, 16)
                                               : DeviceTensor::of(problem.b, DType::bf16, ctx);
        const std::int64_t margin = of_weight && p.grouped ? 0 : 8;
        const auto c = add           ? DeviceTensor::of(problem.c, out, ctx, margin)
                       : margin == 0 ? DeviceTensor(problem.c.view().shape(), out, ctx)
                                     : DeviceTensor::strided(problem.c.view().dim(0), p.n, out, ctx, margin);
        const auto offset = DeviceTensor::of(problem.offset, ctx);
        ASSERT_TRUE(ops::cuda::wgmma_multiply("test", p.layout, c.view(), a.view(), b.view(), add,
                                              p.grouped ? offset.view().as<std::int32_t>() : nullptr, ctx));
        const std::vector<double> found = c.values();
        for (std::int64_t i = 0; i < problem.exact.view().numel(); ++i) {
          // Each partial sum may be off by a unit in the last place: tensor cores cut off where others round.
          const double exact = get(problem.exact, i), value = found[static_cast<std::size_t>(i)];
          const double last = out == DType::bf16 ? 0x1p-8 * std::abs(exact) : 0;
          const double allowed = (static_cast<double>(problem.most_terms) + 2) * 2 * kFloatUnit *
                                     get(problem.magnitude, i) * 1.01 +
                                 last;
          const bool untouched = std::isnan(exact) && std::isnan(value);
          ASSERT_TRUE(untouched || std::abs(value - exact) <= allowed)
              << "element " << i << " is " << value << ", exactly " << exact << ", may be off by " << allowed;
        }
        EXPECT_TRUE(margin == 0 || c.margins_untouched());
      }
    }
  }
}

// Sums that leave by bulk copies, and those of rows that are not aligned for them and are written by threads:
// the bits are the same, also where rows of the next expert follow and where columns end within a slice.
TEST_F(CudaGemmWgmma, BulkCopiesWriteWhatThreadsWrite) {
  std::vector<Case> all{{GemmLayout::nt, {70}, false, 0, 40, 136}};
  for (const GemmLayout layout : {GemmLayout::nt, GemmLayout::nn, GemmLayout::tn})
    for (const std::int64_t n : {8, 72, 264}) all.push_back({layout, {0, 5, 16, 17, 0, 131}, true, 9, 72, n});
  for (const Case& p : all) {
    for (const bool add : {false, true}) {
      for (const DType out : {DType::f32, DType::bf16}) {
        SCOPED_TRACE(::testing::Message()
                     << name_of(p.layout) << ", " << p.counts.size() << " experts, " << p.other << " x " << p.n
                     << ", " << name_of(out) << ", added: " << add);
        const Problem problem(p, add);
        const auto a = DeviceTensor::of(problem.a, DType::bf16, ctx),
                   b = DeviceTensor::of(problem.b, DType::bf16, ctx),
                   offset = DeviceTensor::of(problem.offset, ctx);
        const std::int64_t size = problem.c.view().numel();
        std::vector<double> found[2];
        for (const int shift : {0, 2}) {  // two elements are too few for 16 bytes
          const OwnedTensor before({size + 2, 1}, DType::f64);
          if (add) fill(before.view().slice(shift, size), values(problem.c));
          const auto memory = DeviceTensor::of(before, out, ctx);
          const Tensor c = memory.view().slice(shift, size).reshape(problem.c.view().shape());
          ASSERT_TRUE(ops::cuda::wgmma_multiply("test", p.layout, c, a.view(), b.view(), add,
                                                p.grouped ? offset.view().as<std::int32_t>() : nullptr, ctx));
          found[shift / 2] = memory.values();
          std::rotate(found[shift / 2].begin(), found[shift / 2].begin() + shift, found[shift / 2].end());
        }
        for (std::size_t i = 0; i < found[0].size(); ++i)
          ASSERT_TRUE(found[0][i] == found[1][i] || (std::isnan(found[0][i]) && std::isnan(found[1][i])))
              << "element " << i << " is " << found[0][i] << ", by threads " << found[1][i];
      }
    }
  }
}

TEST_F(CudaGemmWgmma, LeavesToOthersWhatItCannotDo) {
  const auto multiplies = [&](DType type, DType out, std::int64_t margin) {
    const auto a = DeviceTensor::strided(16, 32, type, ctx, margin),
               b = DeviceTensor::strided(24, 32, type, ctx, 8);
    const DeviceTensor c({16, 24}, out, ctx);
    return ops::cuda::wgmma_multiply("test", GemmLayout::nt, c.view(), a.view(), b.view(), false, nullptr, ctx);
  };
  EXPECT_TRUE(multiplies(DType::bf16, DType::bf16, 8));
  EXPECT_TRUE(multiplies(DType::bf16, DType::f32, 16));
  EXPECT_FALSE(multiplies(DType::f32, DType::f32, 8));
  EXPECT_FALSE(multiplies(DType::bf16, DType::bf16, 4));  // rows of 80 bytes, 8 bytes off
  const DeviceTensor odd({16, 23}, DType::bf16, ctx), left({16, 32}, DType::bf16, ctx),
      right({23, 32}, DType::bf16, ctx);
  EXPECT_FALSE(ops::cuda::wgmma_multiply("test", GemmLayout::nt, odd.view(), left.view(), right.view(), false,
                                         nullptr, ctx));
  const DeviceTensor none({0, 32}, DType::bf16, ctx), b({24, 32}, DType::bf16, ctx),
      c({0, 24}, DType::bf16, ctx);
  EXPECT_FALSE(
      ops::cuda::wgmma_multiply("test", GemmLayout::nt, c.view(), none.view(), b.view(), false, nullptr, ctx));
#ifdef SWITCHYARD_SIMT
  for (const simt::Capability& other : {simt::Capability{8, 0, 2}, {8, 9, 2}, {10, 0, 2}, {12, 0, 2}}) {
    simt::capability = other;
    EXPECT_FALSE(multiplies(DType::bf16, DType::bf16, 8));
  }
#endif
}

#ifdef SWITCHYARD_SIMT
TEST_F(CudaGemmWgmma, SameBitsOnAnyNumberOfMultiprocessorsInAnyOrder) {
  for (const Case& p : cases()) {
    if (p.n != 264) continue;
    const Problem problem(p, true);
    const auto a = DeviceTensor::of(problem.a, DType::bf16, ctx),
               b = DeviceTensor::of(problem.b, DType::bf16, ctx),
               offset = DeviceTensor::of(problem.offset, ctx);
    const auto run = [&](int multiprocessors, simt::BlockOrder order) {
      simt::capability = {9, 0, multiprocessors};
      simt::set_block_order(order);
      const auto c = DeviceTensor::of(problem.c, DType::f32, ctx);
      EXPECT_TRUE(ops::cuda::wgmma_multiply("test", p.layout, c.view(), a.view(), b.view(), true,
                                            offset.view().as<std::int32_t>(), ctx));
      return c.values();
    };
    const std::vector<double> one = run(1, simt::BlockOrder::ascending);
    const auto equal = [&](const std::vector<double>& other) {  // NaN, where nothing is written, equals NaN
      for (std::size_t i = 0; i < one.size(); ++i) {
        if (other[i] != one[i] && !(std::isnan(one[i]) && std::isnan(other[i]))) return false;
      }
      return other.size() == one.size();
    };
    EXPECT_TRUE(equal(run(3, simt::BlockOrder::descending)));
    EXPECT_TRUE(equal(run(1000, simt::BlockOrder::ascending)));  // narrow tiles
  }
}
#endif

}  // namespace
}  // namespace switchyard::test
