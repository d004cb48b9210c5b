// Products of a few rows (ops/cpu/skinny.cpp), as generating text makes them.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "ops/cpu/gemm.h"
#include "ops/linear.h"
#include "poisoned_context.h"
#include "rounding_bound.h"
#include "tensors.h"
#include "threads.h"

namespace switchyard::test {
namespace {

using ops::Write;
using ops::cpu::kSkinnyColumns;
using ops::cpu::kSkinnyRows;
using ops::cpu::Trans;

struct Sizes {
  std::int64_t n, k;
};
// Around the 16 inputs of a step and the 64 outputs of a piece; the last one is worth all threads.
const Sizes kSizes[] = {{1, 1},   {3, 5},    {kSkinnyColumns - 1, 15},     {kSkinnyColumns, 16},
                        {65, 17}, {130, 33}, {4 * kSkinnyColumns + 1, 301}};

// Matrices whose rows lie apart, with NaN between them.
struct Product {
  OwnedTensor a, b, c;
  Product(std::int64_t m, const Sizes& s, Trans trans_b, DType dtype)
      : a(normal_strided(m, s.k, dtype, "a", 1.0, 3)),
        b(trans_b == Trans::yes ? normal_strided(s.n, s.k, dtype, "b", 1.0, 1)
                                : normal_strided(s.k, s.n, dtype, "b", 1.0, 1)),
        c(OwnedTensor::strided(m, s.n, dtype, 2)) {}

  template <class T>
  void run(Trans trans_b, T alpha, T beta) const {
    const Tensor &in = a, &weight = b, &out = c;
    ops::cpu::gemm<T>(Trans::no, trans_b, out.rows(), out.dim(1), in.dim(1), alpha, in.as<T>(), in.row_stride(),
                      weight.as<T>(), weight.row_stride(), beta, out.as<T>(), out.row_stride());
  }
};

// Also one row more than is skinny: both ways of computing must be right at their border.
TEST(Skinny, FollowsThePlainProduct) {
  for (const Sizes& s : kSizes) {
    for (const Trans trans_b : {Trans::yes, Trans::no}) {
      for (std::int64_t m = 1; m <= kSkinnyRows + 1; ++m) {
        for (const auto& [alpha, beta] : {std::pair{1.0, 0.0}, std::pair{1.0, 1.0}, std::pair{0.75, -2.0}}) {
          const Product in_float(m, s, trans_b, DType::f32);
          Product exact(m, s, trans_b, DType::f64), magnitude(m, s, trans_b, DType::f64);
          magnitude.a = absolute(magnitude.a), magnitude.b = absolute(magnitude.b);
          if (beta != 0) {  // otherwise C is NaN and must not be read
            for (const Product* each : {&in_float, static_cast<const Product*>(&exact)})
              fill_normal(each->c, "c");
            magnitude.c = absolute(exact.c);
          }
          in_float.run<float>(trans_b, static_cast<float>(alpha), static_cast<float>(beta));
          exact.run<double>(trans_b, alpha, beta);
          magnitude.run<double>(trans_b, std::abs(alpha), std::abs(beta));
          // Beside the k products: C is rounded, alpha * sum is, and so is their sum; beta * C is exact.
          EXPECT_TRUE(within_rounding(values(in_float.c), values(exact.c), values(magnitude.c), s.k + 3))
              << m << " x " << s.n << " x " << s.k << ", transposed " << (trans_b == Trans::yes) << ", beta "
              << beta;
          EXPECT_TRUE(in_float.c.margins_untouched());
        }
      }
    }
  }
}

TEST(Skinny, ARowIsTheSameBitsWhateverRowsAndThreads) {
  for (const Sizes& s : kSizes) {
    for (const Trans trans_b : {Trans::yes, Trans::no}) {
      const auto compute = [&](std::int64_t m) {
        Product product(m, s, trans_b, DType::f32);
        product.run<float>(trans_b, 1.0f, 0.0f);
        return std::move(product.c);
      };
      const OwnedTensor all = compute(kSkinnyRows);
      for (std::int64_t m = 1; m < kSkinnyRows; ++m)
        EXPECT_TRUE(same_bits(compute(m), all.view().slice(0, m))) << m << " x " << s.n << " x " << s.k;
      expect_same_bits_on_any_thread_count([&] { return compute(3); });
    }
  }
}

// As the gradient of the classifier's input sums over a large vocabulary.
TEST(Skinny, LongSumsKeepTheirDigits) {
  const Sizes s{3, std::int64_t{1} << 17};
  for (const Trans trans_b : {Trans::yes, Trans::no}) {
    Product in_float(1, s, trans_b, DType::f32), exact(1, s, trans_b, DType::f64);
    in_float.a = absolute(in_float.a), in_float.b = absolute(in_float.b);  // nothing cancels
    exact.a = absolute(exact.a), exact.b = absolute(exact.b);
    in_float.run<float>(trans_b, 1.0f, 0.0f);
    exact.run<double>(trans_b, 1.0, 0.0);
    // 16 lanes of 8,192 terms, or 256 sums of 512: some hundred roundings of 2^-25 that mostly cancel. In one
    // sum from the first term to the last they would be 131,072.
    EXPECT_TRUE(all_near(values(in_float.c), values(exact.c), 2e-6, 0));
  }
}

// Few routed rows: cut in columns, so that every thread has some.
TEST(Skinny, GroupedIsOneProductAnExpert) {
  const std::vector<std::vector<std::int64_t>> count_lists = {{0, 0, 1}, {1, 1, 0, 1},    {3, 0, 5, 0}, {0, 8},
                                                              {0, 0},    {4, 0, 0, 1, 4}, {9, 1, 0, 8}};
  for (const DType dtype : {DType::f32, DType::f64}) {
    for (const auto& counts : count_lists) {
      for (const Sizes& s : kSizes) {
        PoisonedContext ctx;
        const auto n_experts = static_cast<std::int64_t>(counts.size());
        std::vector<double> offsets = {0};
        for (const std::int64_t count : counts) offsets.push_back(offsets.back() + static_cast<double>(count));
        const auto n_routed = static_cast<std::int64_t>(offsets.back()), n_rows = n_routed + 2;
        const OwnedTensor offset = ints(offsets);
        const OwnedTensor weight = normal({n_experts, s.n, s.k}, dtype, "weight");
        // Spare rows are NaN and stay so.
        const OwnedTensor in = OwnedTensor::strided(n_rows, s.k, dtype, 3),
                          dout = OwnedTensor::strided(n_rows, s.n, dtype, 1);
        fill_normal(in.view().slice(0, n_routed), "in");
        fill_normal(dout.view().slice(0, n_routed), "dout");
        const OwnedTensor out = OwnedTensor::strided(n_rows, s.n, dtype, 2),
                          din = OwnedTensor::strided(n_rows, s.k, dtype, 4);
        ops::grouped_linear_forward(out, in, weight, offset, ctx);
        ops::grouped_linear_backward_input(din, dout, weight, offset, ctx);
        EXPECT_TRUE(out.margins_untouched() && din.margins_untouched());
        for (const OwnedTensor* each : {&out, &din})
          for (const double spare : values(each->view().slice(n_routed, 2))) ASSERT_TRUE(std::isnan(spare));

        for (std::int64_t e = 0; e < n_experts; ++e) {
          const auto count = counts[static_cast<std::size_t>(e)];
          // More rows go to oneDNN, whose order of summation may depend on the columns of a call.
          if (count == 0 || (dtype == DType::f32 && count > kSkinnyRows)) continue;
          const auto first = static_cast<std::int64_t>(offsets[static_cast<std::size_t>(e)]);
          const Tensor weight_NK = weight.view().slice(e, 1).reshape({s.n, s.k});
          const OwnedTensor out_one({count, s.n}, dtype), din_one({count, s.k}, dtype);
          ops::linear_forward(out_one, in.view().slice(first, count), weight_NK, Write::set, ctx);
          ops::linear_backward_input(din_one, dout.view().slice(first, count), weight_NK, Write::set, ctx);
          EXPECT_TRUE(same_bits(out.view().slice(first, count), out_one)) << "expert " << e << ", " << s.n;
          EXPECT_TRUE(same_bits(din.view().slice(first, count), din_one)) << "expert " << e << ", " << s.k;
        }
      }
    }
  }
}

}  // namespace
}  // namespace switchyard::test
