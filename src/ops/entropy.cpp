#include "ops/entropy.h"

#include "ops/cpu/reduce.h"

namespace switchyard::ops {

namespace {

using namespace cpu;

template <class T>
void softmax_entropy_forward_on_cpu(Tensor entropy_T, Tensor logit_TE, Tensor prob_TE, Tensor lse_T) {
  const Rows<T> entropy(entropy_T), logit_rows(logit_TE), prob_rows(prob_TE), lse(lse_T);
  const std::int64_t E = logit_TE.dim(1);
#pragma omp parallel for schedule(static) if (logit_TE.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < logit_TE.rows(); ++t) {
    const T *logit = logit_rows[t], *prob = prob_rows[t];
    // A probability that underflowed to 0 may stand beside a logit of minus infinity.
    const double mean =
        sum_in_lanes(E, [=](std::int64_t e) { return prob[e] > T(0) ? prob[e] * logit[e] : T(0); });
    *entropy[t] = static_cast<T>(static_cast<double>(*lse[t]) - mean);
  }
}

template <class T>
void softmax_entropy_backward_on_cpu(Tensor dlogit_TE, Tensor entropy_T, Tensor logit_TE, Tensor prob_TE,
                                     Tensor lse_T, Tensor token_T, double dentropy) {
  const Rows<T> entropy(entropy_T), dlogit_rows(dlogit_TE), logit_rows(logit_TE), prob_rows(prob_TE),
      lse(lse_T);
  const Rows<std::int32_t> skip(token_T);
  const std::int64_t E = logit_TE.dim(1);
#pragma omp parallel for schedule(static) if (logit_TE.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < logit_TE.rows(); ++t) {
    if (*skip[t] < 0) continue;
    const T *logit = logit_rows[t], *prob = prob_rows[t];
    T* dlogit = dlogit_rows[t];
    const T shift = *entropy[t] - *lse[t], factor = static_cast<T>(-dentropy);
#pragma omp simd
    for (std::int64_t e = 0; e < E; ++e)
      dlogit[e] += prob[e] > T(0) ? factor * prob[e] * (logit[e] + shift) : T(0);
  }
}

template <class T>
void sum_of_tokens_on_cpu(Tensor sum_1, Tensor x_T, Tensor token_T) {
  const Rows<T> x(x_T);
  const Rows<std::int32_t> skip(token_T);
  double sum = 0;
  for (std::int64_t t = 0; t < x_T.rows(); ++t)
    if (*skip[t] >= 0) sum += static_cast<double>(*x[t]);
  *sum_1.as<double>() = sum;
}

}  // namespace

void softmax_entropy_forward(Tensor entropy_T, Tensor logit_TE, Tensor prob_TE, Tensor lse_T, Context& ctx) {
  const DType real = logit_TE.dtype();
  Signature args(ctx);
  args(SY_ARG(logit_TE), real)(SY_ARG(prob_TE), real)(SY_ARG(lse_T), real)(SY_ARG(entropy_T), real);
  run<&cuda::softmax_entropy_forward>(ctx, real, SY_CPU(softmax_entropy_forward_on_cpu), entropy_T, logit_TE,
                                      prob_TE, lse_T);
}

void softmax_entropy_backward(Tensor dlogit_TE, Tensor entropy_T, Tensor logit_TE, Tensor prob_TE, Tensor lse_T,
                              Tensor token_T, double dentropy, Context& ctx) {
  const DType real = logit_TE.dtype();
  Signature args(ctx);
  args(SY_ARG(logit_TE), real)(SY_ARG(prob_TE), real)(SY_ARG(lse_T), real)(SY_ARG(entropy_T), real);
  args(SY_ARG(token_T), DType::i32)(SY_ARG(dlogit_TE), real);
  run<&cuda::softmax_entropy_backward>(ctx, real, SY_CPU(softmax_entropy_backward_on_cpu), dlogit_TE, entropy_T,
                                       logit_TE, prob_TE, lse_T, token_T, dentropy);
}

void sum_of_tokens(Tensor sum_1, Tensor x_T, Tensor token_T, Context& ctx) {
  Signature args(ctx);
  args(SY_ARG(x_T), x_T.dtype())(SY_ARG(token_T), DType::i32);
  args(SY_ARG(sum_1), DType::f64, kContiguous | kAnywhere);
  run<&cuda::sum_of_tokens>(ctx, x_T.dtype(), SY_CPU(sum_of_tokens_on_cpu), sum_1, x_T, token_T);
}

}  // namespace switchyard::ops
