#include "cpu/routing.h"

#include <algorithm>

#include "ops/cpu/reduce.h"

// Legend: T tokens of B sequences, E experts, K slots a token.

namespace switchyard::ops::cpu {

template <class T>
void slot_weights_forward(Tensor weight_TK, Tensor chosen_TK, Tensor expert_TK,
                          const SlotWeighting& weighting) {
  const std::int64_t n_tokens = weight_TK.rows(), K = weight_TK.dim(1);
#pragma omp parallel for schedule(static) if (weight_TK.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < n_tokens; ++t) {
    const std::int32_t* expert = expert_TK.row<std::int32_t>(t);
    const T* chosen = chosen_TK.row<T>(t);
    T sum = static_cast<T>(weighting.eps);
    for (std::int64_t k = 0; k < K; ++k)
      if (expert[k] >= 0) sum += chosen[k];
    const T scale = static_cast<T>(weighting.scale) / (weighting.normalise ? sum : T(1));
    for (std::int64_t k = 0; k < K; ++k) weight_TK.row<T>(t)[k] = expert[k] >= 0 ? chosen[k] * scale : T(0);
  }
}

template <class T>
void slot_weights_backward(Tensor dscore_TE, Tensor dweight_TK, Tensor weight_TK, Tensor chosen_TK,
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
void routing_sums(Tensor count_BE, Tensor prob_sum_BE, Tensor lse2_sum_B, Tensor expert_TK, Tensor prob_TE,
                  Tensor lse_T, Tensor token_T) {
  const std::int64_t B = count_BE.rows(), E = count_BE.dim(1), K = expert_TK.dim(1), S = token_T.rows() / B;
#pragma omp parallel for schedule(static) if (prob_TE.numel() >= kParallelElements)
  for (std::int64_t b = 0; b < B; ++b) {
    std::int32_t* count = count_BE.row<std::int32_t>(b);
    double* prob_sum = prob_sum_BE.row<double>(b);
    double lse2_sum = 0;
    std::fill_n(count, E, 0);
    std::fill_n(prob_sum, E, 0.0);
    for (std::int64_t t = b * S; t < (b + 1) * S; ++t) {
      if (token_T.as<std::int32_t>()[t] < 0) continue;
      const std::int32_t* expert = expert_TK.row<std::int32_t>(t);
      for (std::int64_t k = 0; k < K; ++k)
        if (expert[k] >= 0) ++count[expert[k]];
      const T* prob = prob_TE.row<T>(t);
#pragma omp simd
      for (std::int64_t e = 0; e < E; ++e) prob_sum[e] += static_cast<double>(prob[e]);
      const auto lse = static_cast<double>(lse_T.as<T>()[t]);
      lse2_sum += lse * lse;
    }
    lse2_sum_B.as<double>()[b] = lse2_sum;
  }
}

template <class T>
void add_sequence_gradient(Tensor dprob_TE, Tensor dprob_BE, Tensor token_T) {
  const std::int64_t n_tokens = dprob_TE.rows(), E = dprob_TE.dim(1), S = n_tokens / dprob_BE.rows();
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < n_tokens; ++t) {
    if (token_T.as<std::int32_t>()[t] < 0) continue;
    const double* from = dprob_BE.row<double>(t / S);
    T* dprob = dprob_TE.row<T>(t);
#pragma omp simd
    for (std::int64_t e = 0; e < E; ++e) dprob[e] += static_cast<T>(from[e]);
  }
}

template <class T>
void z_loss_backward(Tensor dlogit_TE, Tensor prob_TE, Tensor lse_T, Tensor token_T, double dz) {
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

#define INSTANTIATE(T)                                                                                  \
  template void slot_weights_forward<T>(Tensor, Tensor, Tensor, const SlotWeighting&);                  \
  template void slot_weights_backward<T>(Tensor, Tensor, Tensor, Tensor, Tensor, const SlotWeighting&); \
  template void routing_sums<T>(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor);                \
  template void add_sequence_gradient<T>(Tensor, Tensor, Tensor);                                       \
  template void z_loss_backward<T>(Tensor, Tensor, Tensor, Tensor, double);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace switchyard::ops::cpu
