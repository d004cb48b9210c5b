#include "ops/topk.h"

#include <algorithm>
#include <cmath>
#include <limits>

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

template <class T>
void top_k_on_cpu(Tensor expert_TK, Tensor chosen_TK, Tensor score_TE, Tensor token_T) {
  const Rows<std::int32_t> expert_rows(expert_TK), skip(token_T);
  const Rows<T> chosen_rows(chosen_TK), score_rows(score_TE);
  const std::int64_t slots = expert_TK.dim(1), experts = score_TE.dim(1);
#pragma omp parallel for schedule(static) if (score_TE.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < score_TE.rows(); ++t) {
    std::int32_t* expert = expert_rows[t];
    T* chosen = chosen_rows[t];
    if (*skip[t] < 0) {
      std::fill_n(expert, slots, -1);
      std::fill_n(chosen, slots, T(0));
      continue;
    }
    // Insertion into a list that is sorted at all times. An equal score does not pass the ones before it, which
    // belong to smaller experts; a NaN passes nothing, and every number passes it.
    const auto passes = [](T score, T other) { return score > other || (score == score && other != other); };
    const T* score = score_rows[t];
    for (std::int64_t e = 0, filled = 0; e < experts; ++e) {
      if (filled == slots && !passes(score[e], chosen[slots - 1])) continue;
      if (filled < slots) ++filled;
      std::int64_t slot = filled - 1;
      for (; slot > 0 && passes(score[e], chosen[slot - 1]); --slot) {
        chosen[slot] = chosen[slot - 1];
        expert[slot] = expert[slot - 1];
      }
      chosen[slot] = score[e];
      expert[slot] = static_cast<std::int32_t>(e);
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

}  // namespace switchyard::ops
