#include "ops/routing.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "ops/cpu/reduce.h"
#include "ops/cpu/vector_math.h"

namespace switchyard::ops {

namespace {

using namespace cpu;

template <class T>
void slot_weights_forward_on_cpu(Tensor weight_TK, Tensor chosen_TK, Tensor expert_TK,
                                 const SlotWeighting& weighting) {
  const std::int64_t n_tokens = weight_TK.rows(), K = weight_TK.dim(1);
#pragma omp parallel for schedule(static) if (weight_TK.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < n_tokens; ++t) {
    const std::int32_t* expert = expert_TK.row<std::int32_t>(t);
    const T* chosen = chosen_TK.row<T>(t);
    T sum = static_cast<T>(weighting.eps);
    for (std::int64_t k = 0; k < K; ++k)
      if (expert[k] >= 0) sum += chosen[k];
    // A quotient, not a factor: one expert alone has exactly the weight 1, as in PyTorch, and a capacity that
    // drops the smallest weights finds them equal.
    const T scale = static_cast<T>(weighting.scale), divisor = weighting.normalise ? sum : T(1);
    for (std::int64_t k = 0; k < K; ++k)
      weight_TK.row<T>(t)[k] = expert[k] >= 0 ? chosen[k] / divisor * scale : T(0);
  }
}

template <class T>
void slot_weights_backward_on_cpu(Tensor dscore_TE, Tensor dweight_TK, Tensor weight_TK, Tensor chosen_TK,
                                  Tensor expert_TK, const SlotWeighting& weighting) {
  const std::int64_t n_tokens = dscore_TE.rows(), E = dscore_TE.dim(1), K = weight_TK.dim(1);
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < n_tokens; ++t) {
    const std::int32_t* expert = expert_TK.row<std::int32_t>(t);
    const T* dweight = dweight_TK.row<T>(t);
    T* dscore = dscore_TE.row<T>(t);
    std::fill_n(dscore, E, T(0));
    T sum = static_cast<T>(weighting.eps), mean = 0;
    const T scale = static_cast<T>(weighting.scale);
    for (std::int64_t k = 0; k < K; ++k) {
      if (expert[k] < 0) continue;
      sum += chosen_TK.row<T>(t)[k];
      mean += dweight[k] * weight_TK.row<T>(t)[k];
    }
    for (std::int64_t k = 0; k < K; ++k)
      if (expert[k] >= 0)
        dscore[expert[k]] = weighting.normalise ? (scale * dweight[k] - mean) / sum : scale * dweight[k];
  }
}

template <class T>
void routing_sums_on_cpu(Tensor count_BE, Tensor prob_sum_BE, Tensor prob2_sum_B, Tensor lse2_sum_B,
                         Tensor expert_TK, Tensor prob_TE, Tensor lse_T, Tensor token_T) {
  const std::int64_t B = count_BE.rows(), E = count_BE.dim(1), K = expert_TK.dim(1), S = token_T.rows() / B;
#pragma omp parallel for schedule(static) if (prob_TE.numel() >= kParallelElements)
  for (std::int64_t b = 0; b < B; ++b) {
    std::int32_t* count = count_BE.row<std::int32_t>(b);
    double* prob_sum = prob_sum_BE.row<double>(b);
    double lse2_sum = 0, prob2_sum = 0;
    std::fill_n(count, E, 0);
    std::fill_n(prob_sum, E, 0.0);
    for (std::int64_t t = b * S; t < (b + 1) * S; ++t) {
      if (token_T.as<std::int32_t>()[t] < 0) continue;
      const std::int32_t* expert = expert_TK.row<std::int32_t>(t);
      for (std::int64_t k = 0; k < K; ++k)
        if (expert[k] >= 0) ++count[expert[k]];
      const T* prob = prob_TE.row<T>(t);
#pragma omp simd reduction(+ : prob2_sum)
      for (std::int64_t e = 0; e < E; ++e) {
        const auto p = static_cast<double>(prob[e]);
        prob_sum[e] += p;
        prob2_sum += p * p;
      }
      const auto lse = static_cast<double>(lse_T.as<T>()[t]);
      lse2_sum += lse * lse;
    }
    prob2_sum_B.as<double>()[b] = prob2_sum;
    lse2_sum_B.as<double>()[b] = lse2_sum;
  }
}

template <class T>
void add_sequence_gradient_on_cpu(Tensor dprob_TE, Tensor dprob_BE, Tensor prob_TE, double dprob2,
                                  Tensor token_T) {
  const std::int64_t n_tokens = dprob_TE.rows(), E = dprob_TE.dim(1), S = n_tokens / dprob_BE.rows();
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < n_tokens; ++t) {
    if (token_T.as<std::int32_t>()[t] < 0) continue;
    const double* from = dprob_BE.row<double>(t / S);
    T* dprob = dprob_TE.row<T>(t);
#pragma omp simd
    for (std::int64_t e = 0; e < E; ++e) dprob[e] += static_cast<T>(from[e]);
    if (dprob2 == 0) continue;
    const T* prob = prob_TE.row<T>(t);
    const T slope = static_cast<T>(2 * dprob2);
#pragma omp simd
    for (std::int64_t e = 0; e < E; ++e) dprob[e] += slope * prob[e];
  }
}

template <class T>
void z_loss_backward_on_cpu(Tensor dlogit_TE, Tensor prob_TE, Tensor lse_T, Tensor token_T, double dz) {
  const std::int64_t n_tokens = dlogit_TE.rows(), E = dlogit_TE.dim(1);
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < n_tokens; ++t) {
    if (token_T.as<std::int32_t>()[t] < 0) continue;
    const T scale = static_cast<T>(2 * dz) * lse_T.as<T>()[t];
    const T* prob = prob_TE.row<T>(t);
    T* dlogit = dlogit_TE.row<T>(t);
#pragma omp simd
    for (std::int64_t e = 0; e < E; ++e) dlogit[e] += scale * prob[e];
  }
}

void check_sequences(std::int64_t n_tokens, std::int64_t n_seq) {
  SY_CHECK(n_seq > 0 && n_tokens % n_seq == 0, "{} tokens are not {} equal sequences", n_tokens, n_seq);
}

}  // namespace

void slot_weights_forward(Tensor weight_TK, Tensor chosen_TK, Tensor expert_TK, const SlotWeighting& weighting,
                          Context& ctx) {
  const DType real = weight_TK.dtype();
  Signature args(ctx);
  args(SY_ARG(expert_TK), DType::i32)(SY_ARG(weight_TK), real)(SY_ARG(chosen_TK), real);
  run<&cuda::slot_weights_forward>(ctx, real, SY_CPU(slot_weights_forward_on_cpu), weight_TK, chosen_TK,
                                   expert_TK, weighting);
}

void slot_weights_backward(Tensor dscore_TE, Tensor dweight_TK, Tensor weight_TK, Tensor chosen_TK,
                           Tensor expert_TK, const SlotWeighting& weighting, Context& ctx) {
  const DType real = dweight_TK.dtype();
  Signature args(ctx);
  args(SY_ARG(expert_TK), DType::i32)(SY_ARG(dweight_TK), real)(SY_ARG(weight_TK), real);
  args(SY_ARG(chosen_TK), real)(SY_ARG(dscore_TE), real);
  run<&cuda::slot_weights_backward>(ctx, real, SY_CPU(slot_weights_backward_on_cpu), dscore_TE, dweight_TK,
                                    weight_TK, chosen_TK, expert_TK, weighting);
}

void routing_sums(Tensor count_BE, Tensor prob_sum_BE, Tensor prob2_sum_B, Tensor lse2_sum_B, Tensor expert_TK,
                  Tensor prob_TE, Tensor lse_T, Tensor token_T, Context& ctx) {
  const DType real = prob_TE.dtype();
  Signature args(ctx);
  args(SY_ARG(token_T), DType::i32)(SY_ARG(expert_TK), DType::i32)(SY_ARG(prob_TE), real)(SY_ARG(lse_T), real);
  args(SY_ARG(count_BE), DType::i32)(SY_ARG(prob_sum_BE), DType::f64)(SY_ARG(lse2_sum_B), DType::f64);
  args(SY_ARG(prob2_sum_B), DType::f64);
  check_sequences(args['T'], args['B']);
  run<&cuda::routing_sums>(ctx, real, SY_CPU(routing_sums_on_cpu), count_BE, prob_sum_BE, prob2_sum_B,
                           lse2_sum_B, expert_TK, prob_TE, lse_T, token_T);
}

void add_sequence_gradient(Tensor dprob_TE, Tensor dprob_BE, Tensor prob_TE, double dprob2, Tensor token_T,
                           Context& ctx) {
  const DType real = dprob_TE.dtype();
  Signature args(ctx);
  args(SY_ARG(token_T), DType::i32)(SY_ARG(dprob_TE), real)(SY_ARG(dprob_BE), DType::f64, kAnywhere);
  args(SY_ARG(prob_TE), real);
  check_sequences(args['T'], args['B']);
  run<&cuda::add_sequence_gradient>(ctx, real, SY_CPU(add_sequence_gradient_on_cpu), dprob_TE, dprob_BE,
                                    prob_TE, dprob2, token_T);
}

void z_loss_backward(Tensor dlogit_TE, Tensor prob_TE, Tensor lse_T, Tensor token_T, double dz, Context& ctx) {
  const DType real = prob_TE.dtype();
  Signature args(ctx);
  args(SY_ARG(prob_TE), real)(SY_ARG(dlogit_TE), real)(SY_ARG(lse_T), real)(SY_ARG(token_T), DType::i32);
  run<&cuda::z_loss_backward>(ctx, real, SY_CPU(z_loss_backward_on_cpu), dlogit_TE, prob_TE, lse_T, token_T,
                              dz);
}

namespace {

using namespace cpu;

constexpr auto kSide = static_cast<std::int32_t>(kGapBins);

// The bin of a gap, in ascending order of the gap, by its borders. A NaN goes where 0 goes.
std::int32_t bin_of(double gap) {
  const auto& border = gap_borders();
  const auto above = std::upper_bound(border.begin() + 1, border.end() - 1, std::abs(gap));
  const auto bin = static_cast<std::int32_t>(above - border.begin()) - 1;
  return gap < 0 ? kSide - 1 - bin : kSide + (gap == gap ? bin : 0);
}

constexpr std::int32_t kNearBorder = -1;

// bin_W[w] = bin_of(gap_W[w]), or kNearBorder where a logarithm of float32 does not say on which side of a
// border the gap is: two in a thousand. Without a branch or a table, so that the loop is vectorised.
void find_bins(std::int32_t* bin_W, const float* gap_W, std::int64_t width) {
  // Distance e_i is at place i. The logarithm is exact to 3e-7 of itself, at most 14: to 1.2e-4 of a bin; then
  // the place rounds.
  constexpr float kBinsALog = 27.740560f, kFirst = 13.815511f, kUnsure = 1e-3f;  // 511 / log(1e8), -log(1e-6)
#pragma omp simd
  for (std::int64_t w = 0; w < width; ++w) {
    const float gap = gap_W[w], distance = std::abs(gap), least = distance > 1e-7f ? distance : 1e-7f;
    const float place = (log_of(least < 1e3f ? least : 1e3f) + kFirst) * kBinsALog + 1;
    const float above = place > 0.5f ? place : 0.5f, within = above < kSide - 0.5f ? above : kSide - 0.5f;
    const auto bin = static_cast<std::int32_t>(within);
    const float part = within - static_cast<float>(bin);
    const std::int32_t ordered = gap < 0 ? kSide - 1 - bin : kSide + bin;
    bin_W[w] = part > kUnsure && part < 1 - kUnsure ? ordered : kNearBorder;
  }
}
void find_bins(std::int32_t* bin_W, const double*, std::int64_t width) {
  std::fill_n(bin_W, width, kNearBorder);
}

// gap(t, e): what is counted, to be counted in `Count`. Every thread counts into a table of its own; counts are
// whole numbers, so that the order in which they are added does not matter.
template <class T, class Count, class F>
void count_bins(Tensor count_EN, Tensor token_T, Context& ctx, F&& gap) {
  constexpr std::int64_t kWidth = 64;  // experts whose bins are found together
  constexpr std::int64_t kInWord = sizeof(std::int32_t) / sizeof(Count);
  // Between two experts' counts in a table, so that they do not lie a multiple of 4 KiB apart, at which a
  // processor takes the one just stored for the one to be loaded.
  constexpr std::int64_t kPadding = 64 / sizeof(Count);
  const Rows<std::int32_t> skip(token_T);
  const std::int64_t E = count_EN.rows(), N = count_EN.dim(1), n_tokens = token_T.rows();
  const std::int64_t row = N + kPadding, M = E * row;
  const int threads = n_tokens * E >= kParallelElements ? omp_get_max_threads() : 1;
  ScratchScope scope(ctx.scratch);
  const Tensor table_XM = ctx.scratch.take(Shape{threads, M / kInWord}, DType::i32);
  const auto table_of = [&](int x) { return reinterpret_cast<Count*>(table_XM.row<std::int32_t>(x)); };
  double* count = count_EN.as<double>();
#pragma omp parallel num_threads(threads)
  {
    Count* table = table_of(omp_get_thread_num());
    // A team may be smaller than asked for: the first thread clears the tables that nobody owns.
    std::fill_n(table, M, Count{0});
    if (omp_get_thread_num() == 0)
      for (int x = omp_get_num_threads(); x < threads; ++x) std::fill_n(table_of(x), M, Count{0});
    std::int32_t bin_W[kWidth];
    T gap_W[kWidth];
#pragma omp for schedule(static)
    for (std::int64_t t = 0; t < n_tokens; ++t) {
      if (*skip[t] < 0) continue;
      for (std::int64_t first = 0; first < E; first += kWidth) {
        const std::int64_t width = std::min(kWidth, E - first);
        for (std::int64_t w = 0; w < width; ++w) gap_W[w] = gap(t, first + w);
        find_bins(bin_W, gap_W, width);
        for (std::int64_t w = 0; w < width; ++w) {
          const std::int32_t bin = bin_W[w] == kNearBorder ? bin_of(static_cast<double>(gap_W[w])) : bin_W[w];
          ++table[(first + w) * row + bin];
        }
      }
    }
#pragma omp for schedule(static)
    for (std::int64_t e = 0; e < E; ++e) {
      double* sum = count + e * N;
      std::fill_n(sum, N, 0.0);
      for (int x = 0; x < threads; ++x) {
        const Count* own = table_of(x) + e * row;
#pragma omp simd
        for (std::int64_t n = 0; n < N; ++n) sum[n] += static_cast<double>(own[n]);
      }
    }
  }
}

template <class T, class F>
void histogram(Tensor count_EN, Tensor token_T, Context& ctx, F&& gap) {
  // Half the size, so that what is counted most often stays in a near cache, and wide enough for so few tokens.
  if (token_T.rows() <= std::numeric_limits<std::uint16_t>::max())
    count_bins<T, std::uint16_t>(count_EN, token_T, ctx, gap);
  else
    count_bins<T, std::int32_t>(count_EN, token_T, ctx, gap);
}

template <class T>
void score_gap_histogram_on_cpu(Tensor count_EN, Tensor score_TE, Tensor value_E, Tensor token_T,
                                Context& ctx) {
  const Rows<T> score(score_TE);
  const T* value = value_E.as<T>();
  histogram<T>(count_EN, token_T, ctx, [&](std::int64_t t, std::int64_t e) { return score[t][e] - value[e]; });
}

template <class T>
void cutoff_gap_histogram_on_cpu(Tensor count_EN, Tensor choice_TE, Tensor cutoff_T, Tensor token_T,
                                 Context& ctx) {
  const Rows<T> choice(choice_TE), cutoff(cutoff_T);
  histogram<T>(count_EN, token_T, ctx,
               [&](std::int64_t t, std::int64_t e) { return *cutoff[t] - choice[t][e]; });
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

namespace {

void add_counts_on_cpu(Tensor count_LE, Tensor count_LBE) {
  const std::int64_t L = count_LBE.dim(0), B = count_LBE.dim(1), E = count_LBE.dim(2);
  const auto* count = count_LBE.as<std::int32_t>();
  for (std::int64_t l = 0; l < L; ++l) {
    double* const sum = count_LE.row<double>(l);
    for (std::int64_t b = 0; b < B; ++b)
      for (std::int64_t e = 0; e < E; ++e) sum[e] += count[(l * B + b) * E + e];
  }
}

void balance_loss_on_cpu(Tensor dprob_LBE, Tensor value_3, Tensor count_LBE, Tensor prob_sum_LBE,
                         Tensor prob2_sum_LB, Tensor lse2_sum_LB, Tensor tokens_B, Tensor count_LE,
                         const BalanceLoss& loss) {
  const std::int64_t L = count_LBE.dim(0), B = count_LBE.dim(1), E = count_LBE.dim(2);
  const auto* const count = count_LBE.as<std::int32_t>();
  const auto* const tokens = tokens_B.as<std::int32_t>();
  const auto *const prob_sum = prob_sum_LBE.as<double>(), *const prob2_sum = prob2_sum_LB.as<double>(),
                    *const lse2_sum = lse2_sum_LB.as<double>();
  auto *const dprob = dprob_LBE.as<double>(), *const value = value_3.as<double>();
  // The sum of an expert's counts over layers [first, end), all sequences.
  const auto counted = [&](std::int64_t e, std::int64_t first, std::int64_t end) {
    double sum = 0;
    for (std::int64_t lb = first * B; lb < end * B; ++lb) sum += count[lb * E + e];
    return sum;
  };
  const double micro_tokens = std::accumulate(tokens, tokens + B, 0.0);
  const auto all_tokens = static_cast<double>(loss.n_tokens), slots = static_cast<double>(loss.n_slots),
             layers = static_cast<double>(L), experts = static_cast<double>(E);
  const double per_layer = loss.balance_coef / layers, z_factor = loss.z_coef / layers / all_tokens,
               variance_factor = loss.variance_coef / layers / all_tokens;
  for (std::int64_t l = 0; l < L; ++l) {
    for (std::int64_t b = 0; b < B; ++b) {
      const std::int64_t lb = l * B + b;
      value[1] += z_factor * lse2_sum[lb];
      const double sequence_tokens = tokens[b];
      value[2] -= variance_factor * prob2_sum[lb];
      for (std::int64_t e = 0; e < E; ++e) {
        double factor = 0;
        if (loss.balance_coef != 0 && sequence_tokens > 0) {
          switch (loss.scope) {
            case BalanceScope::layer:
              factor = per_layer * experts * counted(e, l, l + 1) / (slots * micro_tokens) / all_tokens;
              break;
            case BalanceScope::sequence:
              factor = per_layer * experts * count[lb * E + e] / (slots * sequence_tokens) /
                       (sequence_tokens * static_cast<double>(loss.n_sequences));
              break;
            case BalanceScope::global_batch:
              factor = per_layer * experts * count_LE.row<double>(l)[e] / (slots * all_tokens) / all_tokens;
              break;
            case BalanceScope::model:
              factor = loss.balance_coef * experts * counted(e, 0, L) / (layers * micro_tokens) /
                       (layers * all_tokens);
              break;
          }
        }
        const double sum = prob_sum[lb * E + e];
        const double of_mean = sequence_tokens > 0 ? variance_factor * sum / sequence_tokens : 0;
        dprob[lb * E + e] = factor + 2 * of_mean;
        value[0] += factor * sum;
        value[2] += of_mean * sum;
      }
    }
  }
}

}  // namespace

void add_counts(Tensor count_LE, Tensor count_LBE, Context& ctx) {
  Signature args(ctx);
  args(SY_ARG(count_LBE), DType::i32, kContiguous)(SY_ARG(count_LE), DType::f64, kContiguous);
  run<&cuda::add_counts>(ctx, add_counts_on_cpu, count_LE, count_LBE);
}

void balance_loss(Tensor dprob_LBE, Tensor value_3, Tensor count_LBE, Tensor prob_sum_LBE, Tensor prob2_sum_LB,
                  Tensor lse2_sum_LB, Tensor tokens_B, Tensor count_LE, const BalanceLoss& loss, Context& ctx) {
  const DType f64 = DType::f64;
  Signature args(ctx);
  args(SY_ARG(count_LBE), DType::i32, kContiguous)(SY_ARG(tokens_B), DType::i32);
  args(SY_ARG(prob_sum_LBE), f64, kContiguous)(SY_ARG(lse2_sum_LB), f64, kContiguous);
  args(SY_ARG(prob2_sum_LB), f64, kContiguous);
  args(SY_ARG(dprob_LBE), f64, kContiguous)(SY_ARG(value_3), f64, kContiguous);
  if (loss.scope == BalanceScope::global_batch && loss.balance_coef != 0)
    args(SY_ARG(count_LE), f64, kContiguous);
  run<&cuda::balance_loss>(ctx, balance_loss_on_cpu, dprob_LBE, value_3, count_LBE, prob_sum_LBE, prob2_sum_LB,
                           lse2_sum_LB, tokens_B, count_LE, loss);
}

}  // namespace switchyard::ops
