// Operators of single routers: the capacity of experts, histograms of gaps, the entropy of attention.
#include <gtest/gtest.h>

#include <cmath>

#include "ops/attention.h"
#include "ops/routing.h"
#include "ops/slots.h"
#include "poisoned_context.h"
#include "tensors.h"

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

// Each gap in the bin whose borders hold it, found by walking through all of them.
TEST(GapHistogram, EveryGapIsInItsBin) {
  for (const DType dtype : kTypes) {
    test::PoisonedContext ctx;
    Numbers gaps = {0, 1e-9, -1e-9, 1e-6, -1e-6, 0.5, -0.5, 99, 100, -100, 1e30, -1e30};
    for (int i = -60; i < 25; ++i) gaps.push_back((i % 2 == 0 ? 1 : -1) * std::pow(10.0, 0.1 * i));
    const auto n = static_cast<std::int64_t>(gaps.size());
    OwnedTensor score_TE({n, 1}, dtype), count_EN({1, 2 * ops::kGapBins}, DType::f64), zero_E({1}, dtype);
    fill(score_TE, gaps);
    fill(zero_E, {0});
    Numbers token(gaps.size(), 1);
    token.back() = -1;  // padding counts nowhere
    score_gap_histogram(count_EN, score_TE, zero_E, ints(token), ctx);
    Numbers expected(2 * ops::kGapBins);
    for (std::size_t t = 0; t + 1 < gaps.size(); ++t) {
      const double gap = score_TE[static_cast<std::int64_t>(t)];
      std::size_t bin = 0;
      while (bin + 1 < ops::kGapBins && ops::gap_borders()[bin + 1] <= std::abs(gap)) ++bin;
      expected[gap < 0 ? ops::kGapBins - 1 - bin : ops::kGapBins + bin] += 1;
    }
    EXPECT_EQ(values(count_EN), expected);
    // cutoff - choice: the same gaps the other way round.
    OwnedTensor cutoff_T({n}, dtype), mirrored_EN({1, 2 * ops::kGapBins}, DType::f64);
    for (std::int64_t t = 0; t < n; ++t) test::set(cutoff_T, t, 0);
    for (std::int64_t t = 0; t < n; ++t) test::set(score_TE, t, -score_TE[t]);
    cutoff_gap_histogram(mirrored_EN, score_TE, cutoff_T, ints(token), ctx);
    EXPECT_EQ(values(mirrored_EN), expected);
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
