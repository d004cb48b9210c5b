#include "ops/complexity.h"

#include <algorithm>
#include <cmath>

#include "ops/cpu/reduce.h"
#include "ops/cpu/vector_math.h"

namespace switchyard::ops {

namespace {

using namespace cpu;

template <class T>
void complexity_calibrated_on_cpu(Tensor c_T, Tensor raw_T, Tensor mean_1, Tensor variance_1) {
  const Rows<T> c(c_T), raw(raw_T);
  const auto variance = static_cast<double>(*variance_1.as<T>());
  const T center = *mean_1.as<T>(), inverse = variance > 0 ? static_cast<T>(1 / std::sqrt(variance)) : T(0);
  for (std::int64_t t = 0; t < c_T.rows(); ++t) *c[t] = sigmoid_of((*raw[t] - center) * inverse);
}

template <class T>
void complexity_above_on_cpu(Tensor c_T, Tensor raw_T, double threshold) {
  const Rows<T> c(c_T), raw(raw_T);
  for (std::int64_t t = 0; t < c_T.rows(); ++t) *c[t] = *raw[t] > static_cast<T>(threshold) ? T(1) : T(0);
}

template <class T>
void slot_count_on_cpu(Tensor count_T, Tensor c_T, double least, std::int64_t most) {
  const Rows<T> c(c_T);
  const Rows<std::int32_t> count(count_T);
  for (std::int64_t t = 0; t < c_T.rows(); ++t) {
    // A NaN, which compares with nothing, has the least.
    const T share = *c[t] > T(0) ? *c[t] : T(0);
    *count[t] = static_cast<std::int32_t>(
        std::floor(static_cast<T>(least) + static_cast<T>(static_cast<double>(most) - least) * share + T(0.5)));
  }
}

template <class T>
void token_moments_on_cpu(Tensor moments_3, Tensor raw_T, Tensor token_T) {
  const Rows<T> raw(raw_T);
  const Rows<std::int32_t> skip(token_T);
  double* const moments = moments_3.as<double>();
  std::fill_n(moments, 3, 0.0);
  for (std::int64_t t = 0; t < raw_T.rows(); ++t) {
    if (*skip[t] < 0) continue;
    const auto x = static_cast<double>(*raw[t]);
    moments[0] += 1;
    moments[1] += x;
    moments[2] += x * x;
  }
}

template <class T>
void known_values_on_cpu(Tensor raw_T, Tensor known_T, Tensor value_V, Tensor mean_1, Tensor token_T) {
  const Rows<T> raw(raw_T), value(value_V);
  const Rows<std::int32_t> known(known_T), token(token_T);
  for (std::int64_t t = 0; t < raw_T.rows(); ++t) {
    const std::int32_t v = *token[t];
    const bool is_known = v >= 0 && *value[v] != T(0);
    *raw[t] = is_known ? *value[v] : *mean_1.as<T>();
    *known[t] = is_known ? v : -1;
  }
}

template <class T>
void add_by_token_on_cpu(Tensor sum_2V, Tensor value_T, Tensor token_T, double scale) {
  const Rows<T> value(value_T);
  const Rows<std::int32_t> token(token_T);
  double* const sum = sum_2V.as<double>();
  double* const count = sum + sum_2V.numel() / 2;
  for (std::int64_t t = 0; t < value_T.rows(); ++t) {
    const std::int32_t v = *token[t];
    if (v < 0) continue;
    sum[v] += scale * static_cast<double>(*value[t]);
    count[v] += 1;
  }
}

}  // namespace

void complexity_calibrated(Tensor c_T, Tensor raw_T, Tensor mean_1, Tensor variance_1, Context& ctx) {
  const DType real = raw_T.dtype();
  Signature args(ctx);
  args(SY_ARG(raw_T), real)(SY_ARG(c_T), real)(SY_ARG(mean_1), real)(SY_ARG(variance_1), real);
  run<&cuda::complexity_calibrated>(ctx, real, SY_CPU(complexity_calibrated_on_cpu), c_T, raw_T, mean_1,
                                    variance_1);
}

void complexity_above(Tensor c_T, Tensor raw_T, double threshold, Context& ctx) {
  const DType real = raw_T.dtype();
  Signature args(ctx);
  args(SY_ARG(raw_T), real)(SY_ARG(c_T), real);
  run<&cuda::complexity_above>(ctx, real, SY_CPU(complexity_above_on_cpu), c_T, raw_T, threshold);
}

void slot_count(Tensor count_T, Tensor c_T, double least, std::int64_t most, Context& ctx) {
  Signature args(ctx);
  args(SY_ARG(c_T), c_T.dtype())(SY_ARG(count_T), DType::i32);
  SY_CHECK(0 <= least && least <= static_cast<double>(most), "{} to {} experts", least, most);
  run<&cuda::slot_count>(ctx, c_T.dtype(), SY_CPU(slot_count_on_cpu), count_T, c_T, least, most);
}

void token_moments(Tensor moments_3, Tensor raw_T, Tensor token_T, Context& ctx) {
  Signature args(ctx);
  args(SY_ARG(raw_T), raw_T.dtype())(SY_ARG(token_T), DType::i32);
  args(SY_ARG(moments_3), DType::f64, kContiguous | kAnywhere);
  run<&cuda::token_moments>(ctx, raw_T.dtype(), SY_CPU(token_moments_on_cpu), moments_3, raw_T, token_T);
}

void known_values(Tensor raw_T, Tensor known_T, Tensor value_V, Tensor mean_1, Tensor token_T, Context& ctx) {
  const DType real = raw_T.dtype();
  Signature args(ctx);
  args(SY_ARG(token_T), DType::i32)(SY_ARG(raw_T), real)(SY_ARG(known_T), DType::i32);
  args(SY_ARG(value_V), real)(SY_ARG(mean_1), real);
  run<&cuda::known_values>(ctx, real, SY_CPU(known_values_on_cpu), raw_T, known_T, value_V, mean_1, token_T);
}

void add_by_token(Tensor sum_2V, Tensor value_T, Tensor token_T, double scale, Context& ctx) {
  Signature args(ctx);
  args(SY_ARG(token_T), DType::i32)(SY_ARG(value_T), value_T.dtype());
  args(SY_ARG(sum_2V), DType::f64, kContiguous);
  run<&cuda::add_by_token>(ctx, value_T.dtype(), SY_CPU(add_by_token_on_cpu), sum_2V, value_T, token_T, scale);
}

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
