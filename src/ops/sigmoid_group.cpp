#include "ops/sigmoid_group.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/routing.h"
#include "ops/cpu/reduce.h"
#include "ops/cpu/vector_math.h"
#include "ops/routing.h"

namespace switchyard::ops {

namespace {

using namespace cpu;

template <class T>
void sigmoid_forward_on_cpu(Tensor score_TE, Tensor logit_TE) {
  const Rows<T> score_rows(score_TE), logit_rows(logit_TE);
  const std::int64_t E = score_TE.dim(1);
#pragma omp parallel for schedule(static) if (score_TE.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < score_TE.rows(); ++t) {
#pragma omp simd
    for (std::int64_t e = 0; e < E; ++e) score_rows[t][e] = sigmoid_of(logit_rows[t][e]);
  }
}

template <class T>
void sigmoid_backward_on_cpu(Tensor dlogit_TE, Tensor dscore_TE, Tensor score_TE) {
  const Rows<T> dlogit_rows(dlogit_TE), dscore_rows(dscore_TE), score_rows(score_TE);
  const std::int64_t E = score_TE.dim(1);
#pragma omp parallel for schedule(static) if (score_TE.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < score_TE.rows(); ++t) {
#pragma omp simd
    for (std::int64_t e = 0; e < E; ++e)
      dlogit_rows[t][e] = dscore_rows[t][e] * score_rows[t][e] * (T(1) - score_rows[t][e]);
  }
}

template <class T>
void sqrt_softplus_forward_on_cpu(Tensor score_TE, Tensor logit_TE) {
  const Rows<T> score_rows(score_TE), logit_rows(logit_TE);
  const std::int64_t E = score_TE.dim(1);
#pragma omp parallel for schedule(static) if (score_TE.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < score_TE.rows(); ++t) {
#pragma omp simd
    for (std::int64_t e = 0; e < E; ++e) {
      const T x = logit_rows[t][e], size = x > 0 ? x : -x;
      score_rows[t][e] = std::sqrt((x > 0 ? x : T(0)) + log1p_of(exp_of(-size)));
    }
  }
}

// (1 - exp(-s^2)) / (2 s) of a score s. Where exp(-s^2) is near 1 the difference is what it was rounded from:
// (1 - u) s^2 / -log(u) of the rounded u.
template <class T>
T sqrt_softplus_slope(T s) {
  const T u = exp_of(-s * s);
  const T far = (T(1) - u) / (T(2) * s), near = (T(1) - u) * s / (T(-2) * log_of(u));
  return u < T(0.5) ? far : u == T(1) ? s / T(2) : near;
}

template <class T>
void sqrt_softplus_backward_on_cpu(Tensor dlogit_TE, Tensor dscore_TE, Tensor score_TE) {
  const Rows<T> dlogit_rows(dlogit_TE), dscore_rows(dscore_TE), score_rows(score_TE);
  const std::int64_t E = score_TE.dim(1);
#pragma omp parallel for schedule(static) if (score_TE.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < score_TE.rows(); ++t) {
#pragma omp simd
    for (std::int64_t e = 0; e < E; ++e)
      dlogit_rows[t][e] = dscore_rows[t][e] * sqrt_softplus_slope(score_rows[t][e]);
  }
}

// The two largest of n values added up; of a single value, that value.
template <class T>
T two_largest(const T* values, std::int64_t n) {
  T first = -std::numeric_limits<T>::infinity(), second = first;
  for (std::int64_t i = 0; i < n; ++i) {
    if (values[i] > first) {
      second = first;
      first = values[i];
    } else if (values[i] > second) {
      second = values[i];
    }
  }
  return n > 1 ? first + second : first;
}

template <class T>
void group_choice_on_cpu(Tensor choice_TE, Tensor score_TE, Tensor bias_E, std::int64_t n_group,
                         std::int64_t topk_group) {
  const Rows<T> choice_rows(choice_TE), score_rows(score_TE);
  const T* bias = bias_E.as<T>();
  const std::int64_t E = score_TE.dim(1), size = E / n_group;
#pragma omp parallel for schedule(static) if (score_TE.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < score_TE.rows(); ++t) {
    T* choice = choice_rows[t];
#pragma omp simd
    for (std::int64_t e = 0; e < E; ++e) choice[e] = score_rows[t][e] + bias[e];
    if (topk_group == n_group) continue;
    // A group stays if fewer than topk_group groups beat it; between equals the first one wins.
    T sums[kMaxExpertGroups];
    for (std::int64_t g = 0; g < n_group; ++g) sums[g] = two_largest(choice + g * size, size);
    for (std::int64_t g = 0; g < n_group; ++g) {
      std::int64_t better = 0;
      for (std::int64_t other = 0; other < n_group; ++other)
        better += sums[other] > sums[g] || (sums[other] == sums[g] && other < g);
      if (better >= topk_group) std::fill_n(choice + g * size, size, -std::numeric_limits<T>::infinity());
    }
  }
}

template <class T>
void gather_slots_on_cpu(Tensor chosen_TK, Tensor score_TE, Tensor expert_TK) {
  const Rows<T> chosen_rows(chosen_TK), score_rows(score_TE);
  const Rows<std::int32_t> expert_rows(expert_TK);
  const std::int64_t K = expert_TK.dim(1);
#pragma omp parallel for schedule(static) if (expert_TK.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < expert_TK.rows(); ++t)
    for (std::int64_t k = 0; k < K; ++k) {
      const std::int32_t expert = expert_rows[t][k];
      chosen_rows[t][k] = expert >= 0 ? score_rows[t][expert] : T(0);
    }
}

template <class T>
T inverse_sum(const T* score, std::int64_t n) {
  return static_cast<T>(1 / (sum_in_lanes(n, [=](std::int64_t e) { return score[e]; }) + kScoreSumEps));
}

template <class T>
void row_share_forward_on_cpu(Tensor prob_TE, Tensor score_TE) {
  const Rows<T> prob_rows(prob_TE), score_rows(score_TE);
  const std::int64_t E = score_TE.dim(1);
#pragma omp parallel for schedule(static) if (score_TE.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < score_TE.rows(); ++t) {
    const T* score = score_rows[t];
    const T inverse = inverse_sum(score, E);
#pragma omp simd
    for (std::int64_t e = 0; e < E; ++e) prob_rows[t][e] = score[e] * inverse;
  }
}

template <class T>
void row_share_backward_on_cpu(Tensor dscore_TE, Tensor dprob_TE, Tensor prob_TE, Tensor score_TE) {
  const Rows<T> dscore_rows(dscore_TE), dprob_rows(dprob_TE), prob_rows(prob_TE), score_rows(score_TE);
  const std::int64_t E = score_TE.dim(1);
#pragma omp parallel for schedule(static) if (score_TE.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < score_TE.rows(); ++t) {
    const T *score = score_rows[t], *prob = prob_rows[t], *dprob = dprob_rows[t];
    const T inverse = inverse_sum(score, E);
    const T mean = static_cast<T>(sum_in_lanes(E, [=](std::int64_t e) { return dprob[e] * prob[e]; }));
#pragma omp simd
    for (std::int64_t e = 0; e < E; ++e) dscore_rows[t][e] += (dprob[e] - mean) * inverse;
  }
}

}  // namespace

void sigmoid_forward(Tensor score_TE, Tensor logit_TE, Context& ctx) {
  const DType real = score_TE.dtype();
  Signature args(ctx);
  args(SY_ARG(logit_TE), real)(SY_ARG(score_TE), real);
  run<&cuda::sigmoid_forward>(ctx, real, SY_CPU(sigmoid_forward_on_cpu), score_TE, logit_TE);
}

void sigmoid_backward(Tensor dlogit_TE, Tensor dscore_TE, Tensor score_TE, Context& ctx) {
  const DType real = score_TE.dtype();
  Signature args(ctx);
  args(SY_ARG(score_TE), real)(SY_ARG(dlogit_TE), real)(SY_ARG(dscore_TE), real);
  run<&cuda::sigmoid_backward>(ctx, real, SY_CPU(sigmoid_backward_on_cpu), dlogit_TE, dscore_TE, score_TE);
}

void sqrt_softplus_forward(Tensor score_TE, Tensor logit_TE, Context& ctx) {
  const DType real = score_TE.dtype();
  Signature args(ctx);
  args(SY_ARG(logit_TE), real)(SY_ARG(score_TE), real);
  run<&cuda::sqrt_softplus_forward>(ctx, real, SY_CPU(sqrt_softplus_forward_on_cpu), score_TE, logit_TE);
}

void sqrt_softplus_backward(Tensor dlogit_TE, Tensor dscore_TE, Tensor score_TE, Context& ctx) {
  const DType real = score_TE.dtype();
  Signature args(ctx);
  args(SY_ARG(score_TE), real)(SY_ARG(dlogit_TE), real)(SY_ARG(dscore_TE), real);
  run<&cuda::sqrt_softplus_backward>(ctx, real, SY_CPU(sqrt_softplus_backward_on_cpu), dlogit_TE, dscore_TE,
                                     score_TE);
}

void group_choice(Tensor choice_TE, Tensor score_TE, Tensor bias_E, std::int64_t n_group,
                  std::int64_t topk_group, Context& ctx) {
  const DType real = score_TE.dtype();
  Signature args(ctx);
  args(SY_ARG(score_TE), real)(SY_ARG(choice_TE), real)(SY_ARG(bias_E), real);
  SY_CHECK(n_group >= 1 && n_group <= kMaxExpertGroups && score_TE.dim(1) % n_group == 0,
           "{} experts in {} groups", score_TE.dim(1), n_group);
  SY_CHECK(topk_group >= 1 && topk_group <= n_group, "{} of {} groups", topk_group, n_group);
  run<&cuda::group_choice>(ctx, real, SY_CPU(group_choice_on_cpu), choice_TE, score_TE, bias_E, n_group,
                           topk_group);
}

void gather_slots(Tensor chosen_TK, Tensor score_TE, Tensor expert_TK, Context& ctx) {
  const DType real = score_TE.dtype();
  Signature args(ctx);
  args(SY_ARG(score_TE), real)(SY_ARG(expert_TK), DType::i32)(SY_ARG(chosen_TK), real);
  run<&cuda::gather_slots>(ctx, real, SY_CPU(gather_slots_on_cpu), chosen_TK, score_TE, expert_TK);
}

void row_share_forward(Tensor prob_TE, Tensor score_TE, Context& ctx) {
  const DType real = score_TE.dtype();
  Signature args(ctx);
  args(SY_ARG(score_TE), real)(SY_ARG(prob_TE), real);
  run<&cuda::row_share_forward>(ctx, real, SY_CPU(row_share_forward_on_cpu), prob_TE, score_TE);
}

void row_share_backward(Tensor dscore_TE, Tensor dprob_TE, Tensor prob_TE, Tensor score_TE, Context& ctx) {
  const DType real = score_TE.dtype();
  Signature args(ctx);
  args(SY_ARG(score_TE), real)(SY_ARG(dscore_TE), real)(SY_ARG(dprob_TE), real)(SY_ARG(prob_TE), real);
  run<&cuda::row_share_backward>(ctx, real, SY_CPU(row_share_backward_on_cpu), dscore_TE, dprob_TE, prob_TE,
                                 score_TE);
}

}  // namespace switchyard::ops
