#include "cpu/histogram.h"

#include <omp.h>

#include <algorithm>
#include <cmath>

#include "cpu/reduce.h"

// Legend: T tokens, E experts, N bins, X threads.

namespace switchyard::cpu {

namespace {

// value(t, e): what is counted. Every thread counts into a table of its own; counts are whole numbers, so that
// the order in which they are added does not matter.
template <class T, class F>
void histogram(Tensor count_EN, Tensor score_TE, Tensor skip_T, double low, double high, Context& ctx,
               F&& value) {
  const Rows<std::int32_t> skip(skip_T);
  const std::int64_t E = count_EN.rows(), N = count_EN.dim(1), n_tokens = score_TE.rows();
  const int threads = score_TE.numel() >= kParallelElements ? omp_get_max_threads() : 1;
  ScratchScope scope(ctx.scratch);
  const Tensor table_XM = ctx.scratch.take(Shape{threads, E * N}, DType::i32);
  const Tensor bin_XE = ctx.scratch.take(Shape{threads, E}, DType::i32);
  const T first = static_cast<T>(low), per_bin = static_cast<T>(static_cast<double>(N) / (high - low));
  const T last_bin = static_cast<T>(N - 1);
  double* count = count_EN.as<double>();
#pragma omp parallel num_threads(threads)
  {
    std::int32_t* table = table_XM.row<std::int32_t>(omp_get_thread_num());
    std::int32_t* bin = bin_XE.row<std::int32_t>(omp_get_thread_num());
    std::fill_n(table, E * N, 0);
#pragma omp for schedule(static)
    for (std::int64_t t = 0; t < n_tokens; ++t) {
      if (*skip[t] < 0) continue;
#pragma omp simd
      for (std::int64_t e = 0; e < E; ++e) {
        const T place = (value(t, e) - first) * per_bin;
        // A NaN fails every comparison, and counts in the first bin.
        bin[e] = static_cast<std::int32_t>(place > T(0) ? (place < last_bin ? place : last_bin) : T(0));
      }
      for (std::int64_t e = 0; e < E; ++e) ++table[e * N + bin[e]];
    }
#pragma omp for schedule(static)
    for (std::int64_t i = 0; i < E * N; ++i) {
      std::int64_t sum = 0;
      for (int x = 0; x < threads; ++x) sum += table_XM.row<std::int32_t>(x)[i];
      count[i] = static_cast<double>(sum);
    }
  }
}

}  // namespace

template <class T>
void score_histogram(Tensor count_EN, Tensor score_TE, Tensor skip_T, double low, double high, Context& ctx) {
  const Rows<T> score(score_TE);
  histogram<T>(count_EN, score_TE, skip_T, low, high, ctx,
               [&](std::int64_t t, std::int64_t e) { return score[t][e]; });
}

template <class T>
void margin_histogram(Tensor count_EN, Tensor score_TE, Tensor cutoff_T, Tensor skip_T, double low, double high,
                      Context& ctx) {
  const Rows<T> score(score_TE), cutoff(cutoff_T);
  histogram<T>(count_EN, score_TE, skip_T, low, high, ctx,
               [&](std::int64_t t, std::int64_t e) { return *cutoff[t] - score[t][e]; });
}

#define INSTANTIATE(T)                                                                \
  template void score_histogram<T>(Tensor, Tensor, Tensor, double, double, Context&); \
  template void margin_histogram<T>(Tensor, Tensor, Tensor, Tensor, double, double, Context&);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace switchyard::cpu
