#include "ops/routing.h"

#include <algorithm>

#include "ops/cpu/reduce.h"

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
    const T scale = static_cast<T>(weighting.scale) / (weighting.normalise ? sum : T(1));
    for (std::int64_t k = 0; k < K; ++k) weight_TK.row<T>(t)[k] = expert[k] >= 0 ? chosen[k] * scale : T(0);
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
void routing_sums_on_cpu(Tensor count_BE, Tensor prob_sum_BE, Tensor lse2_sum_B, Tensor expert_TK,
                         Tensor prob_TE, Tensor lse_T, Tensor token_T) {
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
void add_sequence_gradient_on_cpu(Tensor dprob_TE, Tensor dprob_BE, Tensor token_T) {
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

void routing_sums(Tensor count_BE, Tensor prob_sum_BE, Tensor lse2_sum_B, Tensor expert_TK, Tensor prob_TE,
                  Tensor lse_T, Tensor token_T, Context& ctx) {
  const DType real = prob_TE.dtype();
  Signature args(ctx);
  args(SY_ARG(token_T), DType::i32)(SY_ARG(expert_TK), DType::i32)(SY_ARG(prob_TE), real)(SY_ARG(lse_T), real);
  args(SY_ARG(count_BE), DType::i32)(SY_ARG(prob_sum_BE), DType::f64)(SY_ARG(lse2_sum_B), DType::f64);
  check_sequences(args['T'], args['B']);
  run<&cuda::routing_sums>(ctx, real, SY_CPU(routing_sums_on_cpu), count_BE, prob_sum_BE, lse2_sum_B, expert_TK,
                           prob_TE, lse_T, token_T);
}

void add_sequence_gradient(Tensor dprob_TE, Tensor dprob_BE, Tensor token_T, Context& ctx) {
  const DType real = dprob_TE.dtype();
  Signature args(ctx);
  args(SY_ARG(token_T), DType::i32)(SY_ARG(dprob_TE), real)(SY_ARG(dprob_BE), DType::f64, kAnywhere);
  check_sequences(args['T'], args['B']);
  run<&cuda::add_sequence_gradient>(ctx, real, SY_CPU(add_sequence_gradient_on_cpu), dprob_TE, dprob_BE,
                                    token_T);
}

void z_loss_backward(Tensor dlogit_TE, Tensor prob_TE, Tensor lse_T, Tensor token_T, double dz, Context& ctx) {
  const DType real = prob_TE.dtype();
  Signature args(ctx);
  args(SY_ARG(prob_TE), real)(SY_ARG(dlogit_TE), real)(SY_ARG(lse_T), real)(SY_ARG(token_T), DType::i32);
  run<&cuda::z_loss_backward>(ctx, real, SY_CPU(z_loss_backward_on_cpu), dlogit_TE, prob_TE, lse_T, token_T,
                              dz);
}

}  // namespace switchyard::ops
