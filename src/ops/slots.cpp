#include "ops/slots.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "ops/cpu/reduce.h"
#include "ops/cpu/vector_math.h"

namespace switchyard::ops {

namespace {

using namespace cpu;

template <class T>
void softmax_forward_on_cpu(Tensor prob_TE, Tensor lse_T, Tensor logit_TE) {
  const Rows<T> prob_rows(prob_TE), lse(lse_T), logit_rows(logit_TE);
  const std::int64_t experts = logit_TE.dim(1);
#pragma omp parallel for schedule(static) if (logit_TE.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < logit_TE.rows(); ++t) {
    const T* logit = logit_rows[t];
    T* prob = prob_rows[t];
    T largest = -std::numeric_limits<T>::infinity();
#pragma omp simd reduction(max : largest)
    for (std::int64_t e = 0; e < experts; ++e) largest = logit[e] > largest ? logit[e] : largest;
#pragma omp simd
    for (std::int64_t e = 0; e < experts; ++e) prob[e] = exp_of(logit[e] - largest);
    const double sum = sum_in_lanes(experts, [prob](std::int64_t e) { return prob[e]; });
    const T inverse = static_cast<T>(1 / sum);
#pragma omp simd
    for (std::int64_t e = 0; e < experts; ++e) prob[e] *= inverse;
    *lse[t] = static_cast<T>(static_cast<double>(largest) + std::log(sum));
  }
}

template <class T>
void softmax_backward_on_cpu(Tensor dlogit_TE, Tensor dprob_TE, Tensor prob_TE) {
  const Rows<T> dlogit_rows(dlogit_TE), dprob_rows(dprob_TE), prob_rows(prob_TE);
  const std::int64_t experts = prob_TE.dim(1);
#pragma omp parallel for schedule(static) if (prob_TE.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < prob_TE.rows(); ++t) {
    const T* dprob = dprob_rows[t];
    const T* prob = prob_rows[t];
    T* dlogit = dlogit_rows[t];
    const T mean = static_cast<T>(sum_in_lanes(experts, [=](std::int64_t e) { return dprob[e] * prob[e]; }));
#pragma omp simd
    for (std::int64_t e = 0; e < experts; ++e) dlogit[e] = prob[e] * (dprob[e] - mean);
  }
}

// The order of top_k as that of integers: numbers as they are, both zeros equal, NaN below all of them, and the
// least integer below NaN.
template <class Key, class T>
Key key_of(T score) {
  constexpr Key kLeast = std::numeric_limits<Key>::min(), kNan = kLeast + 1;
  const Key bits = std::bit_cast<Key>(score + T(0));
  return score == score ? bits ^ ((bits >> std::numeric_limits<Key>::digits) & ~kLeast) : kNan;
}

// The K best of one token, by insertion into a list that is sorted at all times. An equal score does not pass
// the ones before it, which belong to smaller experts; a NaN passes nothing, and every number passes it.
template <class T>
void best_of_token(std::int32_t* expert, const T* score, std::int64_t slots, std::int64_t experts) {
  const auto passes = [score](std::int64_t e, std::int64_t other) {
    return score[e] > score[other] || (score[e] == score[e] && score[other] != score[other]);
  };
  for (std::int64_t e = 0, filled = 0; e < experts; ++e) {
    if (filled == slots && !passes(e, expert[slots - 1])) continue;
    if (filled < slots) ++filled;
    std::int64_t slot = filled - 1;
    for (; slot > 0 && passes(e, expert[slot - 1]); --slot) expert[slot] = expert[slot - 1];
    expert[slot] = static_cast<std::int32_t>(e);
  }
}

// The same of several tokens side by side, one a lane, without branches: what a score passes moves down by one.
template <class T>
class BestOfTokens {
  using Key = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  using Keys [[gnu::vector_size(64)]] = Key;

 public:
  static constexpr std::int64_t kTokens = sizeof(Keys) / sizeof(Key), kMostSlots = 16;

  void find(const Rows<std::int32_t>& expert_rows, const Rows<T>& score_rows, std::int64_t t,
            std::int64_t slots, std::int64_t experts) {
    [&]<std::size_t... Slots>(std::index_sequence<Slots...>) {
      (void)((static_cast<std::int64_t>(Slots + 1) == slots &&
              (find_slots<Slots + 1>(expert_rows, score_rows, t, experts), true)) ||
             ...);
    }
    (std::make_index_sequence<kMostSlots>());
  }

 private:
  static constexpr std::int64_t kExperts = 32;  // whose keys are made and turned together

  // The number of slots is a constant, so that the lists stay in registers.
  template <std::size_t kSlots>
  void find_slots(const Rows<std::int32_t>& expert_rows, const Rows<T>& score_rows, std::int64_t t,
                  std::int64_t experts) {
    Keys best[kSlots], best_expert[kSlots];
    std::fill_n(best, kSlots, Keys{} + std::numeric_limits<Key>::min());
    std::fill_n(best_expert, kSlots, Keys{});
    for (std::int64_t first = 0; first < experts; first += kExperts) {
      const std::int64_t width = std::min(kExperts, experts - first);
      turn(score_rows, t, first, width);
      for (std::int64_t w = 0; w < width; ++w) {
        Keys key;
        std::memcpy(&key, turned_[w], sizeof key);
        const Keys expert = Keys{} + static_cast<Key>(first + w);
        Keys passes = key > best[kSlots - 1];
#pragma GCC unroll 16
        for (std::size_t k = kSlots - 1; k > 0; --k) {
          const Keys passes_next = key > best[k - 1];
          best[k] = passes_next ? best[k - 1] : (passes ? key : best[k]);
          best_expert[k] = passes_next ? best_expert[k - 1] : (passes ? expert : best_expert[k]);
          passes = passes_next;
        }
        best[0] = passes ? key : best[0];
        best_expert[0] = passes ? expert : best_expert[0];
      }
    }
    for (std::int64_t l = 0; l < kTokens; ++l)
      for (std::size_t k = 0; k < kSlots; ++k)
        expert_rows[t + l][k] = static_cast<std::int32_t>(best_expert[k][l]);
  }

  // turned_[w][l] = the key of token t + l and expert first + w. Read as vectors only after all of them are
  // written: a processor waits for a vector whose parts it has just stored.
  void turn(const Rows<T>& score_rows, std::int64_t t, std::int64_t first, std::int64_t width) {
    for (std::int64_t l = 0; l < kTokens; ++l) {
      const T* score = score_rows[t + l] + first;
      Key key[kExperts];
#pragma omp simd
      for (std::int64_t w = 0; w < width; ++w) key[w] = key_of<Key>(score[w]);
      for (std::int64_t w = 0; w < width; ++w) turned_[w][l] = key[w];
    }
  }

  Key turned_[kExperts][kTokens];
};

template <class T>
void top_k_on_cpu(Tensor expert_TK, Tensor chosen_TK, Tensor score_TE, Tensor token_T) {
  const Rows<std::int32_t> expert_rows(expert_TK), skip(token_T);
  const Rows<T> chosen_rows(chosen_TK), score_rows(score_TE);
  const std::int64_t n_tokens = score_TE.rows(), slots = expert_TK.dim(1), experts = score_TE.dim(1);
  constexpr std::int64_t kTokens = BestOfTokens<T>::kTokens;
#pragma omp parallel for schedule(static) if (score_TE.numel() >= kParallelElements)
  for (std::int64_t first = 0; first < n_tokens; first += kTokens) {
    const std::int64_t last = std::min(first + kTokens, n_tokens);
    const bool together = last - first == kTokens && slots <= BestOfTokens<T>::kMostSlots;
    if (together) BestOfTokens<T>().find(expert_rows, score_rows, first, slots, experts);
    for (std::int64_t t = first; t < last; ++t) {
      std::int32_t* expert = expert_rows[t];
      T* chosen = chosen_rows[t];
      if (*skip[t] < 0) {
        std::fill_n(expert, slots, -1);
        std::fill_n(chosen, slots, T(0));
        continue;
      }
      if (!together) best_of_token(expert, score_rows[t], slots, experts);
      for (std::int64_t k = 0; k < slots; ++k) chosen[k] = score_rows[t][expert[k]];
    }
  }
}

}  // namespace

void softmax_forward(Tensor prob_TE, Tensor lse_T, Tensor logit_TE, Context& ctx) {
  const DType real = logit_TE.dtype();
  Signature args(ctx);
  args(SY_ARG(logit_TE), real)(SY_ARG(prob_TE), real)(SY_ARG(lse_T), real);
  run<&cuda::softmax_forward>(ctx, real, SY_CPU(softmax_forward_on_cpu), prob_TE, lse_T, logit_TE);
}

void softmax_backward(Tensor dlogit_TE, Tensor dprob_TE, Tensor prob_TE, Context& ctx) {
  const DType real = prob_TE.dtype();
  Signature args(ctx);
  args(SY_ARG(prob_TE), real)(SY_ARG(dlogit_TE), real)(SY_ARG(dprob_TE), real);
  run<&cuda::softmax_backward>(ctx, real, SY_CPU(softmax_backward_on_cpu), dlogit_TE, dprob_TE, prob_TE);
}

void top_k(Tensor expert_TK, Tensor chosen_TK, Tensor score_TE, Tensor token_T, Context& ctx) {
  const DType real = score_TE.dtype();
  Signature args(ctx);
  args(SY_ARG(score_TE), real)(SY_ARG(token_T), DType::i32)(SY_ARG(expert_TK), DType::i32)(SY_ARG(chosen_TK),
                                                                                           real);
  SY_CHECK(args['K'] >= 1 && args['K'] <= args['E'], "{} slots for {} experts", args['K'], args['E']);
  run<&cuda::top_k>(ctx, real, SY_CPU(top_k_on_cpu), expert_TK, chosen_TK, score_TE, token_T);
}

namespace {

using namespace cpu;

template <class T>
void experts_of_tokens_on_cpu(Tensor expert_TK, Tensor table_N, Tensor token_T) {
  const Rows<std::int32_t> expert_rows(expert_TK), token(token_T);
  const T* const table = table_N.as<T>();
  const std::int64_t K = expert_TK.dim(1), n_known = table_N.numel() / K;
  for (std::int64_t t = 0; t < expert_TK.rows(); ++t) {
    SY_CHECK(*token[t] < n_known, "token {} of a table of {}", *token[t], n_known);
    for (std::int64_t k = 0; k < K; ++k)
      expert_rows[t][k] = *token[t] < 0 ? -1 : static_cast<std::int32_t>(table[*token[t] * K + k]);
  }
}

template <class T>
void normalise_logits_forward_on_cpu(Tensor logit_TE, Tensor unit_TE, Tensor rstd_T, double scale) {
  const Rows<T> logit_rows(logit_TE), unit_rows(unit_TE), rstd_rows(rstd_T);
  const std::int64_t E = logit_TE.dim(1);
  const double share = 1 / static_cast<double>(E);
#pragma omp parallel for schedule(static) if (logit_TE.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < logit_TE.rows(); ++t) {
    T *logit = logit_rows[t], *unit = unit_rows[t];
    const T mean = static_cast<T>(sum_in_lanes(E, [=](std::int64_t e) { return logit[e]; }) * share);
    const double variance =
        sum_in_lanes(E, [=](std::int64_t e) { return (logit[e] - mean) * (logit[e] - mean); }) * share;
    const T rstd = static_cast<T>(1 / std::sqrt(variance + kLogitVarianceEps)), factor = static_cast<T>(scale);
#pragma omp simd
    for (std::int64_t e = 0; e < E; ++e) {
      unit[e] = (logit[e] - mean) * rstd;
      logit[e] = factor * unit[e];
    }
    *rstd_rows[t] = rstd;
  }
}

template <class T>
void normalise_logits_backward_on_cpu(Tensor dlogit_TE, Tensor unit_TE, Tensor rstd_T, double scale) {
  const Rows<T> dlogit_rows(dlogit_TE), unit_rows(unit_TE), rstd_rows(rstd_T);
  const std::int64_t E = dlogit_TE.dim(1);
  const double share = 1 / static_cast<double>(E);
#pragma omp parallel for schedule(static) if (dlogit_TE.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < dlogit_TE.rows(); ++t) {
    T* dlogit = dlogit_rows[t];
    const T* unit = unit_rows[t];
    const T mean = static_cast<T>(sum_in_lanes(E, [=](std::int64_t e) { return dlogit[e]; }) * share);
    const T along =
        static_cast<T>(sum_in_lanes(E, [=](std::int64_t e) { return dlogit[e] * unit[e]; }) * share);
    const T factor = static_cast<T>(scale) * *rstd_rows[t];
#pragma omp simd
    for (std::int64_t e = 0; e < E; ++e) dlogit[e] = factor * (dlogit[e] - mean - unit[e] * along);
  }
}

}  // namespace

void experts_of_tokens(Tensor expert_TK, Tensor table_N, Tensor token_T, Context& ctx) {
  const DType real = table_N.dtype();
  Signature args(ctx);
  args(SY_ARG(expert_TK), DType::i32)(SY_ARG(table_N), real, kContiguous)(SY_ARG(token_T), DType::i32);
  SY_CHECK(table_N.numel() % expert_TK.dim(1) == 0, "{} numbers for {} slots", table_N.numel(),
           expert_TK.dim(1));
  run<&cuda::experts_of_tokens>(ctx, real, SY_CPU(experts_of_tokens_on_cpu), expert_TK, table_N, token_T);
}

void normalise_logits_forward(Tensor logit_TE, Tensor unit_TE, Tensor rstd_T, double scale, Context& ctx) {
  const DType real = logit_TE.dtype();
  Signature args(ctx);
  args(SY_ARG(logit_TE), real)(SY_ARG(unit_TE), real)(SY_ARG(rstd_T), real);
  run<&cuda::normalise_logits_forward>(ctx, real, SY_CPU(normalise_logits_forward_on_cpu), logit_TE, unit_TE,
                                       rstd_T, scale);
}

void normalise_logits_backward(Tensor dlogit_TE, Tensor unit_TE, Tensor rstd_T, double scale, Context& ctx) {
  const DType real = dlogit_TE.dtype();
  Signature args(ctx);
  args(SY_ARG(dlogit_TE), real)(SY_ARG(unit_TE), real)(SY_ARG(rstd_T), real);
  run<&cuda::normalise_logits_backward>(ctx, real, SY_CPU(normalise_logits_backward_on_cpu), dlogit_TE, unit_TE,
                                        rstd_T, scale);
}

namespace {

using namespace cpu;

// Of each token, frees the slots from keep(chosen, K) on.
template <class T, class F>
void keep_first(Tensor expert_TK, Tensor chosen_TK, F&& keep) {
  const Rows<std::int32_t> expert_rows(expert_TK);
  const Rows<T> chosen_rows(chosen_TK);
  const std::int64_t K = expert_TK.dim(1);
#pragma omp parallel for schedule(static) if (expert_TK.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < expert_TK.rows(); ++t) {
    const std::int64_t kept = std::clamp<std::int64_t>(keep(t, chosen_rows[t], K), 0, K);
    std::fill(expert_rows[t] + kept, expert_rows[t] + K, -1);
    std::fill(chosen_rows[t] + kept, chosen_rows[t] + K, T(0));
  }
}

template <class T>
void keep_prefix_sum_on_cpu(Tensor expert_TK, Tensor chosen_TK, double p) {
  keep_first<T>(expert_TK, chosen_TK, [p](std::int64_t, const T* chosen, std::int64_t K) {
    T sum = 0;
    std::int64_t k = 0;
    while (k < K) {
      sum += chosen[k++];
      if (sum >= static_cast<T>(p)) break;
    }
    return k;
  });
}

template <class T>
void keep_count_on_cpu(Tensor expert_TK, Tensor chosen_TK, Tensor count_T) {
  const std::int32_t* count = count_T.as<std::int32_t>();
  keep_first<T>(expert_TK, chosen_TK, [count](std::int64_t t, const T*, std::int64_t) { return count[t]; });
}

template <class T>
void keep_finite_on_cpu(Tensor expert_TK, Tensor chosen_TK) {
  keep_first<T>(expert_TK, chosen_TK, [](std::int64_t, const T* chosen, std::int64_t K) {
    std::int64_t k = 0;
    while (k < K && chosen[k] != -std::numeric_limits<T>::infinity()) ++k;
    return k;
  });
}

template <class T>
void threshold_choice_on_cpu(Tensor choice_TE, Tensor score_TE, Tensor threshold_E) {
  const Rows<T> choice_rows(choice_TE), score_rows(score_TE);
  const T* threshold = threshold_E.as<T>();
  const std::int64_t E = score_TE.dim(1);
#pragma omp parallel for schedule(static) if (score_TE.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < score_TE.rows(); ++t) {
#pragma omp simd
    for (std::int64_t e = 0; e < E; ++e)
      choice_rows[t][e] =
          score_rows[t][e] > threshold[e] ? score_rows[t][e] : -std::numeric_limits<T>::infinity();
  }
}

template <class T>
void slot_softmax_forward_on_cpu(Tensor weight_TK, Tensor chosen_TK, Tensor expert_TK, double scale) {
  const Rows<T> weight_rows(weight_TK), chosen_rows(chosen_TK);
  const Rows<std::int32_t> expert_rows(expert_TK);
  const std::int64_t K = expert_TK.dim(1);
#pragma omp parallel for schedule(static) if (expert_TK.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < expert_TK.rows(); ++t) {
    const std::int32_t* expert = expert_rows[t];
    const T* chosen = chosen_rows[t];
    T largest = -std::numeric_limits<T>::infinity(), sum = 0;
    for (std::int64_t k = 0; k < K; ++k)
      if (expert[k] >= 0) largest = std::max(largest, chosen[k]);
    for (std::int64_t k = 0; k < K; ++k) {
      weight_rows[t][k] = expert[k] >= 0 ? exp_of(chosen[k] - largest) : T(0);
      sum += weight_rows[t][k];
    }
    const T factor = sum > 0 ? static_cast<T>(scale) / sum : T(0);
    for (std::int64_t k = 0; k < K; ++k) weight_rows[t][k] *= factor;
  }
}

template <class T>
void slot_softmax_backward_on_cpu(Tensor dscore_TE, Tensor dweight_TK, Tensor weight_TK, Tensor expert_TK,
                                  double scale) {
  const Rows<T> dscore_rows(dscore_TE), dweight_rows(dweight_TK), weight_rows(weight_TK);
  const Rows<std::int32_t> expert_rows(expert_TK);
  const std::int64_t E = dscore_TE.dim(1), K = expert_TK.dim(1);
#pragma omp parallel for schedule(static) if (dscore_TE.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < expert_TK.rows(); ++t) {
    const std::int32_t* expert = expert_rows[t];
    const T *dweight = dweight_rows[t], *weight = weight_rows[t];
    std::fill_n(dscore_rows[t], E, T(0));
    T mean = 0;
    for (std::int64_t k = 0; k < K; ++k)
      if (expert[k] >= 0) mean += dweight[k] * weight[k];
    mean /= static_cast<T>(scale);
    for (std::int64_t k = 0; k < K; ++k)
      if (expert[k] >= 0) dscore_rows[t][expert[k]] = weight[k] * (dweight[k] - mean);
  }
}

}  // namespace

void keep_prefix_sum(Tensor expert_TK, Tensor chosen_TK, double p, Context& ctx) {
  const DType real = chosen_TK.dtype();
  Signature args(ctx);
  args(SY_ARG(expert_TK), DType::i32)(SY_ARG(chosen_TK), real);
  run<&cuda::keep_prefix_sum>(ctx, real, SY_CPU(keep_prefix_sum_on_cpu), expert_TK, chosen_TK, p);
}

void keep_count(Tensor expert_TK, Tensor chosen_TK, Tensor count_T, Context& ctx) {
  const DType real = chosen_TK.dtype();
  Signature args(ctx);
  args(SY_ARG(expert_TK), DType::i32)(SY_ARG(chosen_TK), real)(SY_ARG(count_T), DType::i32);
  run<&cuda::keep_count>(ctx, real, SY_CPU(keep_count_on_cpu), expert_TK, chosen_TK, count_T);
}

void keep_finite(Tensor expert_TK, Tensor chosen_TK, Context& ctx) {
  const DType real = chosen_TK.dtype();
  Signature args(ctx);
  args(SY_ARG(expert_TK), DType::i32)(SY_ARG(chosen_TK), real);
  run<&cuda::keep_finite>(ctx, real, SY_CPU(keep_finite_on_cpu), expert_TK, chosen_TK);
}

void threshold_choice(Tensor choice_TE, Tensor score_TE, Tensor threshold_E, Context& ctx) {
  const DType real = score_TE.dtype();
  Signature args(ctx);
  args(SY_ARG(score_TE), real)(SY_ARG(choice_TE), real)(SY_ARG(threshold_E), real);
  run<&cuda::threshold_choice>(ctx, real, SY_CPU(threshold_choice_on_cpu), choice_TE, score_TE, threshold_E);
}

void slot_softmax_forward(Tensor weight_TK, Tensor chosen_TK, Tensor expert_TK, double scale, Context& ctx) {
  const DType real = weight_TK.dtype();
  Signature args(ctx);
  args(SY_ARG(expert_TK), DType::i32)(SY_ARG(chosen_TK), real)(SY_ARG(weight_TK), real);
  run<&cuda::slot_softmax_forward>(ctx, real, SY_CPU(slot_softmax_forward_on_cpu), weight_TK, chosen_TK,
                                   expert_TK, scale);
}

void slot_softmax_backward(Tensor dscore_TE, Tensor dweight_TK, Tensor weight_TK, Tensor expert_TK,
                           double scale, Context& ctx) {
  const DType real = weight_TK.dtype();
  Signature args(ctx);
  args(SY_ARG(expert_TK), DType::i32)(SY_ARG(weight_TK), real)(SY_ARG(dweight_TK), real);
  args(SY_ARG(dscore_TE), real);
  run<&cuda::slot_softmax_backward>(ctx, real, SY_CPU(slot_softmax_backward_on_cpu), dscore_TE, dweight_TK,
                                    weight_TK, expert_TK, scale);
}

namespace {

using namespace cpu;

// A counting sort of the slots by expert; of an expert that has too many, the list of its slots is partitioned
// by (weight, position). Experts are independent of one another.
template <class T>
void limit_capacity_on_cpu(Tensor kept_expert_TK, Tensor kept_weight_TK, Tensor dropped_1, Tensor expert_TK,
                           Tensor weight_TK, Tensor token_T, std::int64_t n_experts, double factor,
                           Context& ctx) {
  const Rows<std::int32_t> expert_rows(expert_TK), kept_expert(kept_expert_TK), skip(token_T);
  const Rows<T> weight_rows(weight_TK), kept_weight(kept_weight_TK);
  const std::int64_t n_tokens = expert_TK.rows(), K = expert_TK.dim(1);
  ScratchScope scope(ctx.scratch);
  std::int32_t* slot = ctx.scratch.take(Shape{n_tokens * K}, DType::i32).as<std::int32_t>();
  std::int32_t* offset = ctx.scratch.take(Shape{n_experts + 1}, DType::i32).as<std::int32_t>();
  std::fill_n(offset, n_experts + 1, 0);
  std::int64_t real_tokens = 0;
  for (std::int64_t t = 0; t < n_tokens; ++t) {
    real_tokens += *skip[t] >= 0;
    for (std::int64_t k = 0; k < K; ++k) {
      const std::int32_t expert = expert_rows[t][k];
      SY_CHECK(expert < n_experts, "token {} names expert {} of {}", t, expert, n_experts);
      kept_expert[t][k] = expert;
      kept_weight[t][k] = weight_rows[t][k];
      if (expert >= 0) ++offset[expert + 1];
    }
  }
  // The small step down undoes the rounding of a product that is a whole number in decimals (1.1 * 10).
  const double exact = factor * static_cast<double>(real_tokens * K) / static_cast<double>(n_experts);
  const double most = std::ceil(exact * (1 - 1e-12));
  const std::int64_t capacity =
      most < static_cast<double>(n_tokens) ? static_cast<std::int64_t>(most) : n_tokens;
  for (std::int64_t e = 0; e < n_experts; ++e) offset[e + 1] += offset[e];
  std::int32_t* next = ctx.scratch.take(Shape{n_experts}, DType::i32).as<std::int32_t>();
  std::copy_n(offset, n_experts, next);
  for (std::int64_t s = 0; s < n_tokens * K; ++s)
    if (const std::int32_t expert = expert_rows[s / K][s % K]; expert >= 0)
      slot[next[expert]++] = static_cast<std::int32_t>(s);

  std::int64_t dropped = 0;
#pragma omp parallel for schedule(dynamic, 1) reduction(+ : dropped) if (n_tokens * K >= kParallelElements)
  for (std::int64_t e = 0; e < n_experts; ++e) {
    std::int32_t *first = slot + offset[e], *last = slot + offset[e + 1];
    if (last - first <= capacity) continue;
    const auto weight_of = [&](std::int32_t s) {  // a NaN, which has no place in an order, comes last
      const T weight = weight_rows[s / K][s % K];
      return weight == weight ? weight : -std::numeric_limits<T>::infinity();
    };
    std::nth_element(first, first + capacity, last, [&](std::int32_t a, std::int32_t b) {
      const T weight_a = weight_of(a), weight_b = weight_of(b);
      return weight_a > weight_b || (weight_a == weight_b && a < b);
    });
    for (const std::int32_t* s = first + capacity; s < last; ++s) {
      kept_expert[*s / K][*s % K] = -1;
      kept_weight[*s / K][*s % K] = T(0);
    }
    dropped += last - first - capacity;
  }
  dropped_1.as<std::int32_t>()[0] = static_cast<std::int32_t>(dropped);
}

}  // namespace

void limit_capacity(Tensor kept_expert_TK, Tensor kept_weight_TK, Tensor dropped_1, Tensor expert_TK,
                    Tensor weight_TK, Tensor token_T, std::int64_t n_experts, double factor, Context& ctx) {
  const DType real = weight_TK.dtype();
  Signature args(ctx);
  args(SY_ARG(expert_TK), DType::i32)(SY_ARG(weight_TK), real)(SY_ARG(token_T), DType::i32);
  args(SY_ARG(kept_expert_TK), DType::i32)(SY_ARG(kept_weight_TK), real)(SY_ARG(dropped_1), DType::i32);
  SY_CHECK(factor > 0 && n_experts > 0, "a capacity factor of {} for {} experts", factor, n_experts);
  run<&cuda::limit_capacity>(ctx, real, SY_CPU(limit_capacity_on_cpu), kept_expert_TK, kept_weight_TK,
                             dropped_1, expert_TK, weight_TK, token_T, n_experts, factor);
}

}  // namespace switchyard::ops
