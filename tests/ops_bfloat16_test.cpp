// Products in bfloat16. The reference multiplies the operands after rounding them to bfloat16 itself, so that
// the tolerance measures the product and not the rounding.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "ops/cpu/gemm.h"
#include "ops/linear.h"
#include "tensors.h"
#include "threads.h"

namespace switchyard::test {
namespace {

Context in_bf16() {
  Context ctx;
  ctx.matmul = MatmulType::bf16;
  return ctx;
}

double to_bf16(double value) {
  const auto bits = std::bit_cast<std::uint32_t>(static_cast<float>(value));
  const std::uint32_t kept = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
  return std::bit_cast<float>(kept);
}

OwnedTensor rounded(const Tensor& tensor) {
  OwnedTensor result(tensor.shape(), DType::f64);
  for (std::int64_t i = 0; i < tensor.numel(); ++i) set(result, i, to_bf16(get(tensor, i)));
  return result;
}

OwnedTensor widened(const Tensor& tensor) {
  OwnedTensor result(tensor.shape(), DType::f64);
  for (std::int64_t i = 0; i < tensor.numel(); ++i) set(result, i, get(tensor, i));
  return result;
}

// Products of two bfloat16 are exact in float32; what is left is the order of the float32 sum: at most k
// rounding errors of 2^-24 of the sum of absolute terms, which for normal values of variance 1 is about 0.8 k.
double tolerance(std::int64_t k) { return static_cast<double>(k * k) * 0x1p-24 + 1e-30; }

struct Sizes {
  std::int64_t rows, in, out;
};
const Sizes kSizes[] = {{1, 1, 1}, {3, 5, 7}, {17, 33, 65}, {64, 32, 96}, {129, 70, 31}};

TEST(BFloat16, LinearMatchesTheRoundedProduct) {
  for (const Sizes& s : kSizes) {
    Context bf16 = in_bf16(), exact;
    const OwnedTensor in = normal_strided(s.rows, s.in, DType::f32, "in");
    const OwnedTensor weight = normal({s.out, s.in}, DType::f32, "weight");
    const OwnedTensor out = OwnedTensor::strided(s.rows, s.out, DType::f32);
    const OwnedTensor expected({s.rows, s.out}, DType::f64);
    ops::linear_forward(out, in, weight, ops::Write::set, bf16);
    ops::linear_forward(expected, rounded(in), rounded(weight), ops::Write::set, exact);
    EXPECT_TRUE(all_near(values(out), values(expected), 0, tolerance(s.in)));
    EXPECT_TRUE(out.margins_untouched());

    ops::linear_forward(out, in, weight, ops::Write::add, bf16);
    ops::linear_forward(expected, rounded(in), rounded(weight), ops::Write::add, exact);
    EXPECT_TRUE(all_near(values(out), values(expected), 0, 3 * tolerance(s.in)));
  }
}

TEST(BFloat16, GradientsMatchTheRoundedProducts) {
  for (const Sizes& s : kSizes) {
    Context bf16 = in_bf16(), exact;
    const OwnedTensor in = normal({s.rows, s.in}, DType::f32, "in");
    const OwnedTensor weight = normal({s.out, s.in}, DType::f32, "weight");
    const OwnedTensor dout = normal({s.rows, s.out}, DType::f32, "dout");
    const OwnedTensor din({s.rows, s.in}, DType::f32), din_expected({s.rows, s.in}, DType::f64);
    const OwnedTensor dweight = normal({s.out, s.in}, DType::f32, "start"),
                      dweight_expected = normal({s.out, s.in}, DType::f64, "start");
    ops::linear_backward_input(din, dout, weight, ops::Write::set, bf16);
    ops::linear_backward_input(din_expected, rounded(dout), rounded(weight), ops::Write::set, exact);
    EXPECT_TRUE(all_near(values(din), values(din_expected), 0, tolerance(s.out)));
    ops::linear_backward_weight(dweight, dout, in, bf16);
    ops::linear_backward_weight(dweight_expected, rounded(dout), rounded(in), exact);
    // One more rounding: of the sum, when it is added to what was there.
    EXPECT_TRUE(all_near(values(dweight), values(dweight_expected), 1e-6, tolerance(s.rows) + 1e-6));
  }
}

TEST(BFloat16, GroupedProductsMatchTheRoundedOnes) {
  constexpr std::int64_t kExperts = 4, kIn = 24, kOut = 40, kRows = 700;
  const OwnedTensor offset =
      ints({0, 3, 3, 620, 690});  // an empty expert, one of several pieces, ten free rows
  Context bf16 = in_bf16(), exact;
  const OwnedTensor in = normal({kRows, kIn}, DType::f32, "in"),
                    dout = normal({kRows, kOut}, DType::f32, "dout");
  const OwnedTensor weight = normal({kExperts, kOut, kIn}, DType::f32, "weight");
  const OwnedTensor out({kRows, kOut}, DType::f32), out_expected({kRows, kOut}, DType::f64);
  ops::grouped_linear_forward(out, in, weight, offset, bf16);
  ops::grouped_linear_forward(out_expected, rounded(in), rounded(weight), offset, exact);
  EXPECT_TRUE(
      all_near(values(out.view().slice(0, 690)), values(out_expected.view().slice(0, 690)), 0, tolerance(kIn)));
  EXPECT_TRUE(std::isnan(out[690 * kOut]));  // free rows are not written

  const OwnedTensor dweight = normal({kExperts, kOut, kIn}, DType::f32, "start"),
                    dweight_expected = normal({kExperts, kOut, kIn}, DType::f64, "start");
  ops::grouped_linear_backward_weight(dweight, dout, in, offset, bf16);
  ops::grouped_linear_backward_weight(dweight_expected, rounded(dout), rounded(in), offset, exact);
  EXPECT_TRUE(all_near(values(dweight), values(dweight_expected), 1e-6, tolerance(kRows)));
}

// The path of processors without such products, on every processor.
TEST(BFloat16, RoundedOperandsGiveTheSameProduct) {
  for (const Sizes& s : kSizes)
    for (const auto trans_a : {ops::cpu::Trans::no, ops::cpu::Trans::yes})
      for (const auto trans_b : {ops::cpu::Trans::no, ops::cpu::Trans::yes}) {
        const bool turn_a = trans_a == ops::cpu::Trans::yes, turn_b = trans_b == ops::cpu::Trans::yes;
        const OwnedTensor a = normal({turn_a ? s.in : s.rows, turn_a ? s.rows : s.in}, DType::f32, "a");
        const OwnedTensor b = normal({turn_b ? s.out : s.in, turn_b ? s.in : s.out}, DType::f32, "b");
        const OwnedTensor out = normal({s.rows, s.out}, DType::f32, "start"),
                          expected = normal({s.rows, s.out}, DType::f64, "start");
        ops::cpu::gemm_bf16_rounded(trans_a, trans_b, s.rows, s.out, s.in, a.view().as<float>(),
                                    a.view().dim(1), b.view().as<float>(), b.view().dim(1), true,
                                    out.view().as<float>(), s.out);
        ops::cpu::gemm<double>(trans_a, trans_b, s.rows, s.out, s.in, 1, rounded(a).view().as<double>(),
                               a.view().dim(1), rounded(b).view().as<double>(), b.view().dim(1), 1,
                               expected.view().as<double>(), s.out);
        // One more rounding: of the sum, when it is added to what was there.
        EXPECT_TRUE(all_near(values(out), values(expected), 1e-6, tolerance(s.in) + 1e-6));
      }
}

std::vector<ops::cpu::PackedWord> packed_words() {
  using enum ops::cpu::PackedWord;
  if (!ops::cpu::kHasPacked) return {};
  if (!ops::cpu::kHasPairs) return {f32, rounded};
  return {f32, rounded, pair};
}
const char* const kNoPacked = "not built for a processor with AVX-512";

// Sizes at and beside those of strips, panels and the pieces that fit the caches; {rows, in, out}.
const Sizes kPackedSizes[] = {{1, 1, 1},     {2, 3, 48},     {7, 2, 15},     {8, 31, 16},   {9, 32, 17},
                              {63, 33, 33},  {257, 511, 31}, {65, 513, 513}, {300, 70, 64}, {19, 1025, 545},
                              {40, 16, 129}, {257, 48, 160}, {256, 257, 130}};

TEST(BFloat16, PackedOperandsGiveTheSameProduct) {
  using ops::cpu::PackedWord;
  if (packed_words().empty()) GTEST_SKIP() << kNoPacked;
  for (const PackedWord word : packed_words())
    for (const Sizes& s : kPackedSizes)
      for (const auto trans_a : {ops::cpu::Trans::no, ops::cpu::Trans::yes})
        for (const auto trans_b : {ops::cpu::Trans::no, ops::cpu::Trans::yes})
          for (const bool add : {false, true}) {
            const bool turn_a = trans_a == ops::cpu::Trans::yes, turn_b = trans_b == ops::cpu::Trans::yes;
            // What lies beside the operands is NaN, and so is what the product may not read.
            const OwnedTensor a =
                normal_strided(turn_a ? s.in : s.rows, turn_a ? s.rows : s.in, DType::f32, "a");
            const OwnedTensor b = normal_strided(turn_b ? s.out : s.in, turn_b ? s.in : s.out, DType::f32, "b");
            const OwnedTensor out = add ? normal_strided(s.rows, s.out, DType::f32, "start")
                                        : OwnedTensor::strided(s.rows, s.out, DType::f32);
            const OwnedTensor expected =
                add ? normal({s.rows, s.out}, DType::f64, "start") : OwnedTensor({s.rows, s.out}, DType::f64);
            ops::cpu::gemm_packed(word, trans_a, trans_b, s.rows, s.out, s.in, a.view().as<float>(),
                                  a.view().row_stride(), b.view().as<float>(), b.view().row_stride(), add,
                                  out.view().as<float>(), out.view().row_stride());
            const bool exact = word == PackedWord::f32;
            const OwnedTensor a64 = exact ? widened(a) : rounded(a), b64 = exact ? widened(b) : rounded(b);
            ops::cpu::gemm<double>(trans_a, trans_b, s.rows, s.out, s.in, 1, a64.view().as<double>(),
                                   a64.view().dim(1), b64.view().as<double>(), b64.view().dim(1), add ? 1 : 0,
                                   expected.view().as<double>(), s.out);
            // One more rounding: of the sum, when it is added to what was there. Float32 operands need no other
            // tolerance: fused operations do not round their products either.
            EXPECT_TRUE(all_near(values(out), values(expected), 1e-6, tolerance(s.in) + 1e-6))
                << s.rows << " x " << s.out << " x " << s.in << ", word " << static_cast<int>(word);
            EXPECT_TRUE(out.margins_untouched());
          }
}

// So that an expert's rows do not depend on who else is there, and a rank's on how many ranks there are.
TEST(BFloat16, PackedSumsHaveOneOrder) {
  if (packed_words().empty()) GTEST_SKIP() << kNoPacked;
  constexpr std::int64_t kM = 300, kN = 600, kK = 1100;
  const OwnedTensor a_MK = normal({kM, kK}, DType::f32, "a"), a_KM = normal({kK, kM}, DType::f32, "a");
  const OwnedTensor b_NK = normal({kN, kK}, DType::f32, "b"), b_KN = normal({kK, kN}, DType::f32, "b");
  for (const ops::cpu::PackedWord word : packed_words())
    for (const auto trans_a : {ops::cpu::Trans::no, ops::cpu::Trans::yes})
      for (const auto trans_b : {ops::cpu::Trans::no, ops::cpu::Trans::yes}) {
        const bool turn_a = trans_a == ops::cpu::Trans::yes, turn_b = trans_b == ops::cpu::Trans::yes;
        const auto product = [&](std::int64_t first, std::int64_t rows, std::int64_t columns) {
          OwnedTensor out({rows, columns}, DType::f32);
          ops::cpu::gemm_packed(word, trans_a, trans_b, rows, columns, kK,
                                turn_a ? a_KM.view().as<float>() + first : a_MK.view().row<float>(first),
                                turn_a ? kM : kK, (turn_b ? b_NK : b_KN).view().as<float>(), turn_b ? kK : kN,
                                false, out.view().as<float>(), columns);
          return out;
        };
        expect_same_bits_on_any_thread_count([&] { return product(0, kM, kN); });
        const OwnedTensor all = product(0, kM, kN);
        for (const std::int64_t first : {0, 5, 290})
          for (const std::int64_t rows : {1, 3, 10})
            EXPECT_TRUE(same_bits(product(first, rows, kN), all.view().slice(first, rows)))
                << rows << " from " << first;
        for (const std::int64_t columns : {1, 40, 100, 512})
          EXPECT_TRUE(same_bits(product(0, kM, columns), all.view().columns(0, columns)))
              << columns << " columns";
      }
}

// What a run is told of its dtype: rounded operands that are multiplied as float32 are no faster.
TEST(BFloat16, PairsAreFastProducts) {
  const bool pairs = ops::cpu::packed_word(MatmulType::bf16) == ops::cpu::PackedWord::pair;
  EXPECT_TRUE(!pairs || ops::has_fast_matmul(MatmulType::bf16, Device::cpu));
  EXPECT_EQ(ops::cpu::packed_word(MatmulType::f32), ops::cpu::PackedWord::f32);
  EXPECT_NE(ops::cpu::packed_word(MatmulType::bf16), ops::cpu::PackedWord::f32);
  EXPECT_NE(ops::cpu::packed_word(MatmulType::e4m3), ops::cpu::PackedWord::f32);
  EXPECT_TRUE(ops::has_fast_matmul(MatmulType::f32, Device::cpu));
}

TEST(BFloat16, ItIsNotFloat32) {
  Context bf16 = in_bf16();
  OwnedTensor in({1, 1}, DType::f32), weight({1, 1}, DType::f32);
  const OwnedTensor out({1, 1}, DType::f32);
  fill(in, {1 + 0x1p-12});  // rounds to 1 in bfloat16
  fill(weight, {3});
  ops::linear_forward(out, in, weight, ops::Write::set, bf16);
  EXPECT_EQ(out[0], 3);
  {
    const Float32Products products(bf16);
    ops::linear_forward(out, in, weight, ops::Write::set, bf16);
    EXPECT_EQ(out[0], 3 + 3 * 0x1p-12);
  }
  EXPECT_EQ(bf16.matmul, MatmulType::bf16);
}

TEST(BFloat16, NanAndInfinityStayVisible) {
  Context bf16 = in_bf16();
  const double kNan = std::numeric_limits<double>::quiet_NaN(), kInf = std::numeric_limits<double>::infinity();
  OwnedTensor in({2, 1}, DType::f32), weight({1, 1}, DType::f32);
  const OwnedTensor out({2, 1}, DType::f32);
  fill(in, {kNan, kInf});
  fill(weight, {2});
  ops::linear_forward(out, in, weight, ops::Write::set, bf16);
  EXPECT_TRUE(std::isnan(out[0]));
  EXPECT_EQ(out[1], kInf);
}

}  // namespace
}  // namespace switchyard::test
