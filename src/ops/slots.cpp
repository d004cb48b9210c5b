#include "ops/slots.h"

#include <algorithm>
#include <limits>

#include "ops/cpu/reduce.h"
#include "ops/cpu/vector_math.h"

namespace switchyard::ops {

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

}  // namespace switchyard::ops
