#include "ops/histogram.h"

#include <omp.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "ops/cpu/reduce.h"

namespace switchyard::ops {

namespace {

using namespace cpu;

// The bin of a distance without a logarithm: exponent and leading bits of the mantissa name a cell that is
// narrower than any bin, so that one comparison with a border says which of two bins it is.
class BinFinder {
 public:
  BinFinder() {
    const auto& border = gap_borders();
    first_ = cell(static_cast<float>(border[1])) - 1;
    last_ = cell(static_cast<float>(border[kGapBins])) + 1;
    for (std::int32_t c = first_; c <= last_; ++c) {
      const double least = std::bit_cast<float>(c << kShift);
      const auto above = std::upper_bound(border.begin(), border.end(), least);
      bin_.push_back(std::min<std::int32_t>(static_cast<std::int32_t>(above - border.begin()) - 1,
                                            static_cast<std::int32_t>(kGapBins) - 1));
    }
    for (const double b : border) border_.push_back(b);
    border_.back() = INFINITY;  // what is farther belongs to the last bin
  }
  // In ascending order of the gap. A NaN goes where 0 goes.
  std::int32_t operator()(double gap) const {
    // An infinite gap is as far as any; min() keeps a NaN.
    const double distance = std::min(std::abs(gap), std::numeric_limits<double>::max());
    const std::int32_t at = std::clamp(cell(static_cast<float>(distance)), first_, last_);
    std::int32_t bin = bin_[static_cast<std::size_t>(at - first_)];
    bin += distance >= border_[static_cast<std::size_t>(bin) + 1];
    bin -=
        distance < border_[static_cast<std::size_t>(bin)];  // a double just below the float it was rounded to
    constexpr auto kSide = static_cast<std::int32_t>(kGapBins);
    return gap < 0 ? kSide - 1 - bin : kSide + (distance == distance ? bin : 0);
  }

 private:
  static constexpr int kShift = 23 - 6;
  static std::int32_t cell(float distance) { return std::bit_cast<std::int32_t>(distance) >> kShift; }
  std::int32_t first_ = 0, last_ = 0;
  std::vector<std::int32_t> bin_;
  std::vector<double> border_;
};

// gap(t, e): what is counted. Every thread counts into a table of its own; counts are whole numbers, so that
// the order in which they are added does not matter.
template <class F>
void histogram(Tensor count_EN, Tensor token_T, Context& ctx, F&& gap) {
  static const BinFinder bin_of;
  const Rows<std::int32_t> skip(token_T);
  const std::int64_t E = count_EN.rows(), N = count_EN.dim(1), n_tokens = token_T.rows();
  const int threads = n_tokens * E >= kParallelElements ? omp_get_max_threads() : 1;
  ScratchScope scope(ctx.scratch);
  const Tensor table_XM = ctx.scratch.take(Shape{threads, E * N}, DType::i32);
  double* count = count_EN.as<double>();
#pragma omp parallel num_threads(threads)
  {
    std::int32_t* table = table_XM.row<std::int32_t>(omp_get_thread_num());
    // A team may be smaller than asked for: the first thread clears the tables that nobody owns.
    std::fill_n(table, E * N, 0);
    if (omp_get_thread_num() == 0)
      for (int x = omp_get_num_threads(); x < threads; ++x)
        std::fill_n(table_XM.row<std::int32_t>(x), E * N, 0);
#pragma omp for schedule(static)
    for (std::int64_t t = 0; t < n_tokens; ++t) {
      if (*skip[t] < 0) continue;
      for (std::int64_t e = 0; e < E; ++e) ++table[e * N + bin_of(static_cast<double>(gap(t, e)))];
    }
#pragma omp for schedule(static)
    for (std::int64_t i = 0; i < E * N; ++i) {
      std::int64_t sum = 0;
      for (int x = 0; x < threads; ++x) sum += table_XM.row<std::int32_t>(x)[i];
      count[i] = static_cast<double>(sum);
    }
  }
}

template <class T>
void score_gap_histogram_on_cpu(Tensor count_EN, Tensor score_TE, Tensor value_E, Tensor token_T,
                                Context& ctx) {
  const Rows<T> score(score_TE);
  const T* value = value_E.as<T>();
  histogram(count_EN, token_T, ctx, [&](std::int64_t t, std::int64_t e) { return score[t][e] - value[e]; });
}

template <class T>
void cutoff_gap_histogram_on_cpu(Tensor count_EN, Tensor choice_TE, Tensor cutoff_T, Tensor token_T,
                                 Context& ctx) {
  const Rows<T> choice(choice_TE), cutoff(cutoff_T);
  histogram(count_EN, token_T, ctx, [&](std::int64_t t, std::int64_t e) { return *cutoff[t] - choice[t][e]; });
}

}  // namespace

void score_gap_histogram(Tensor count_EN, Tensor score_TE, Tensor value_E, Tensor token_T, Context& ctx) {
  const DType real = score_TE.dtype();
  Signature args(ctx);
  args.bind('N', 2 * kGapBins)(SY_ARG(score_TE), real)(SY_ARG(value_E), real)(SY_ARG(token_T), DType::i32);
  args(SY_ARG(count_EN), DType::f64, kContiguous | kAnywhere);
  run<&cuda::score_gap_histogram>(ctx, real, SY_CPU(score_gap_histogram_on_cpu), count_EN, score_TE, value_E,
                                  token_T);
}

void cutoff_gap_histogram(Tensor count_EN, Tensor choice_TE, Tensor cutoff_T, Tensor token_T, Context& ctx) {
  const DType real = choice_TE.dtype();
  Signature args(ctx);
  args.bind('N', 2 * kGapBins)(SY_ARG(choice_TE), real)(SY_ARG(cutoff_T), real)(SY_ARG(token_T), DType::i32);
  args(SY_ARG(count_EN), DType::f64, kContiguous | kAnywhere);
  run<&cuda::cutoff_gap_histogram>(ctx, real, SY_CPU(cutoff_gap_histogram_on_cpu), count_EN, choice_TE,
                                   cutoff_T, token_T);
}

}  // namespace switchyard::ops
