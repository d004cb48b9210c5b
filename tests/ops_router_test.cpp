// Operators of single routers: the capacity of experts, histograms of gaps, the entropy of attention.
#include <gtest/gtest.h>

#include <cmath>

#include "ops/attention.h"
#include "ops/elementwise.h"
#include "ops/routing.h"
#include "ops/slots.h"
#include "poisoned_context.h"
#include "tensors.h"
#include "threads.h"

namespace switchyard::ops {
namespace {

using test::fill;
using test::ints;
using test::OwnedTensor;
using test::values;
using Numbers = std::vector<double>;

constexpr DType kTypes[] = {DType::f32, DType::f64};

TEST(Capacity, EqualWeightsStayInOrderOfPosition) {
  for (const DType dtype : kTypes) {
    test::PoisonedContext ctx;
    // Four tokens of one slot, all on expert 1 of two; the second is padding. ceil(1 * 3 / 2) = 2 may stay.
    OwnedTensor expert_TK({4, 1}, DType::i32), kept_TK({4, 1}, DType::i32), weight_TK({4, 1}, dtype),
        kept_weight_TK({4, 1}, dtype), dropped_1({1}, DType::i32);
    fill(expert_TK, {1, -1, 1, 1});
    fill(weight_TK, {0.5, 0, 0.5, 0.5});
    limit_capacity(kept_TK, kept_weight_TK, dropped_1, expert_TK, weight_TK, ints({1, -1, 1, 1}), 2, 1, ctx);
    EXPECT_EQ(dropped_1[0], 1);
    EXPECT_EQ(values(kept_TK), (Numbers{1, -1, 1, -1}));
    EXPECT_EQ(values(kept_weight_TK), (Numbers{0.5, 0, 0.5, 0}));
    fill(weight_TK, {0.25, 0, 0.5, 0.75});
    limit_capacity(kept_TK, kept_weight_TK, dropped_1, expert_TK, weight_TK, ints({1, -1, 1, 1}), 2, 1, ctx);
    EXPECT_EQ(values(kept_TK), (Numbers{-1, -1, 1, 1}));
    limit_capacity(kept_TK, kept_weight_TK, dropped_1, expert_TK, weight_TK, ints({1, -1, 1, 1}), 2, 1e9, ctx);
    EXPECT_EQ(dropped_1[0], 0);
  }
}

std::size_t bin_by_walking(double gap) {
  std::size_t bin = 0;
  while (bin + 1 < ops::kGapBins && ops::gap_borders()[bin + 1] <= std::abs(gap)) ++bin;
  return gap < 0 ? ops::kGapBins - 1 - bin : ops::kGapBins + bin;  // where a NaN is at bin 0
}

// Each gap in the bin whose borders hold it, found by walking through all of them: one gap after the other, and
// many side by side, each with every expert once.
TEST(GapHistogram, EveryGapIsInItsBin) {
  for (const DType dtype : kTypes)
    for (const std::int64_t E : {1, 67}) {
      test::PoisonedContext ctx;
      Numbers gaps = {0,    -0.0, 1e-9,  -1e-9, 1e-6,   -1e-6,    0.5,       -0.5,         99,           100,
                      -100, 1e30, -1e30, 1e-45, -1e-45, INFINITY, -INFINITY, std::nan(""), -std::nan("")};
      for (int i = -60; i < 25; ++i) gaps.push_back((i % 2 == 0 ? 1 : -1) * std::pow(10.0, 0.1 * i));
      for (const double border : ops::gap_borders())  // and the floats on both sides of each border
        for (const float near : {static_cast<float>(border), std::nextafter(static_cast<float>(border), 0.0f),
                                 std::nextafter(static_cast<float>(border), 200.0f)})
          gaps.insert(gaps.end(), {border, near, -near});
      const auto n = static_cast<std::int64_t>(gaps.size());
      const OwnedTensor score_TE({n, E}, dtype), count_EN({E, 2 * ops::kGapBins}, DType::f64),
          zero_E({E}, dtype);
      fill(zero_E, Numbers(static_cast<std::size_t>(E)));
      for (std::int64_t t = 0; t < n; ++t)
        for (std::int64_t e = 0; e < E; ++e)
          test::set(score_TE, t * E + e, gaps[static_cast<std::size_t>((t + e) % n)]);
      Numbers token(gaps.size(), 1);
      token.back() = -1;  // padding counts nowhere
      score_gap_histogram(count_EN, score_TE, zero_E, ints(token), ctx);
      Numbers expected(static_cast<std::size_t>(E * 2 * ops::kGapBins));
      for (std::int64_t t = 0; t + 1 < n; ++t)
        for (std::int64_t e = 0; e < E; ++e)
          expected[static_cast<std::size_t>(e * 2 * ops::kGapBins) + bin_by_walking(score_TE[t * E + e])] += 1;
      EXPECT_EQ(values(count_EN), expected) << E << " experts";
      // cutoff - choice: the same gaps the other way round.
      const OwnedTensor cutoff_T({n}, dtype), mirrored_EN({E, 2 * ops::kGapBins}, DType::f64);
      for (std::int64_t t = 0; t < n; ++t) test::set(cutoff_T, t, 0);
      for (std::int64_t i = 0; i < n * E; ++i) test::set(score_TE, i, -score_TE[i]);
      cutoff_gap_histogram(mirrored_EN, score_TE, cutoff_T, ints(token), ctx);
      EXPECT_EQ(values(mirrored_EN), expected) << E << " experts";
    }
}

// More tokens than a 16-bit count holds, all in one bin of one thread, and experts that are not whole blocks.
TEST(GapHistogram, CountsAsManyTokensAsThereAre) {
  for (const std::int64_t n : {65'535, 65'536, 70'000}) {
    test::PoisonedContext ctx;
    constexpr std::int64_t E = 67;
    OwnedTensor choice_TE({n, E}, DType::f32), count_EN({E, 2 * ops::kGapBins}, DType::f64),
        cutoff_T({n}, DType::f32);
    OwnedTensor token_T({n}, DType::i32);
    test::fill_int(token_T, "token", 0, 9);
    ops::fill_zero(choice_TE, ctx);
    ops::fill_zero(cutoff_T, ctx);
    test::with_threads(1, [&] { cutoff_gap_histogram(count_EN, choice_TE, cutoff_T, token_T, ctx); });
    for (std::int64_t e = 0; e < E; ++e)
      ASSERT_EQ(count_EN[e * 2 * ops::kGapBins + ops::kGapBins], static_cast<double>(n)) << "expert " << e;
  }
}

// Many keys over several tiles, a window and a document border, against the rows of the softmax written out.
TEST(AttentionEntropy, IsThatOfTheRowsWrittenOut) {
  constexpr std::int64_t kSeqLen = 200, kHeads = 2;
  for (const auto& [dtype, width] :
       {std::pair{DType::f32, 4}, {DType::f64, 4}, {DType::f32, 16}}) {  // 16: in whole lanes
    const std::int64_t N = width;
    test::PoisonedContext ctx;
    const ops::AttentionShape shape{1, kSeqLen, kHeads, 1, N, N, 0.7};
    const OwnedTensor q = test::normal({kSeqLen, kHeads * N}, dtype, "q"),
                      k = test::normal({kSeqLen, N}, dtype, "k"), v = test::normal({kSeqLen, N}, dtype, "v");
    Numbers begin(kSeqLen);
    for (std::size_t t = 0; t < kSeqLen; ++t)
      begin[t] = t >= 150 ? static_cast<double>(t) - 40 : t >= 3 ? 3 : 0;
    const OwnedTensor kv_begin_T = ints(begin);
    OwnedTensor out({kSeqLen, kHeads * N}, dtype), lse({kSeqLen, kHeads}, dtype),
        entropy_TH({kSeqLen, kHeads}, dtype), entropy_T({kSeqLen}, dtype), plain({kSeqLen, kHeads * N}, dtype);
    attention_forward(plain, lse, q, k, v, kv_begin_T, shape, {}, ctx);
    attention_forward(out, lse, q, k, v, kv_begin_T, shape, entropy_TH, ctx);
    EXPECT_EQ(values(out), values(plain));
    attention_row_entropy(entropy_T, entropy_TH, kv_begin_T, kSeqLen, 0, ctx);
    for (std::int64_t t = 0; t < kSeqLen; ++t) {
      double mean = 0;
      const auto first = static_cast<std::int64_t>(begin[static_cast<std::size_t>(t)]);
      for (std::int64_t h = 0; h < kHeads; ++h) {
        Numbers p;
        double sum = 0;
        for (std::int64_t s = first; s <= t; ++s) {
          double score = 0;
          for (std::int64_t c = 0; c < N; ++c) score += q[(t * kHeads + h) * N + c] * k[s * N + c];
          p.push_back(std::exp(0.7 * score));
          sum += p.back();
        }
        for (const double each : p) mean -= each / sum * std::log(each / sum) / kHeads;
      }
      const auto length = static_cast<double>(t - first + 1);
      // exp, log and sums of up to 150 terms in the compute type
      EXPECT_NEAR(entropy_T[t], length > 1 ? mean / std::log(length) : 0, dtype == DType::f32 ? 1e-5 : 1e-13)
          << t;
    }
  }
}

}  // namespace
}  // namespace switchyard::ops
