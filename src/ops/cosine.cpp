#include "ops/cosine.h"

#include <algorithm>
#include <cmath>

#include "ops/cpu/reduce.h"

namespace switchyard::ops {

namespace {

using namespace cpu;

constexpr double kLeastLength = 1e-12;  // of a product of two lengths

template <class T, class F>
void for_rows(const Tensor& x_RD, F&& f) {
  const Rows<T> x(x_RD);
#pragma omp parallel for schedule(static) if (x_RD.numel() >= kParallelElements)
  for (std::int64_t r = 0; r < x_RD.rows(); ++r) f(r, x[r]);
}

template <class T>
void row_norm_l1_on_cpu(Tensor norm_R, Tensor x_RD) {
  const std::int64_t D = x_RD.dim(1);
  const Rows<T> norm(norm_R);
  for_rows<T>(x_RD, [&](std::int64_t r, const T* x) {
    *norm[r] = static_cast<T>(sum_in_lanes(D, [=](std::int64_t d) { return std::abs(x[d]); }));
  });
}

template <class T>
void row_norm_l2_on_cpu(Tensor norm_R, Tensor x_RD) {
  const std::int64_t D = x_RD.dim(1);
  const Rows<T> norm(norm_R);
  for_rows<T>(x_RD, [&](std::int64_t r, const T* x) {
    *norm[r] = static_cast<T>(
        std::sqrt(sum_in_lanes(D, [=](std::int64_t d) { return static_cast<double>(x[d]) * x[d]; })));
  });
}

template <class T>
void cosine_forward_on_cpu(Tensor score_TE, Tensor x_norm_T, Tensor mean_norm_E) {
  const T *x_norm = x_norm_T.as<T>(), *mean_norm = mean_norm_E.as<T>();
  const std::int64_t E = score_TE.dim(1);
  const T least = static_cast<T>(kLeastLength);
  for_rows<T>(score_TE, [&](std::int64_t t, T* score) {
#pragma omp simd
    for (std::int64_t e = 0; e < E; ++e) {
      const T length = x_norm[t] * mean_norm[e];
      score[e] /= length > least ? length : least;
    }
  });
}

template <class T>
void cosine_backward_on_cpu(Tensor dscore_TE, Tensor dx_TD, Tensor score_TE, Tensor x_TD, Tensor x_norm_T,
                            Tensor mean_norm_E) {
  const Rows<T> score_rows(score_TE), x_rows(x_TD), dx_rows(dx_TD);
  const T *x_norm = x_norm_T.as<T>(), *mean_norm = mean_norm_E.as<T>();
  const std::int64_t E = score_TE.dim(1), D = x_TD.dim(1);
  const T least = static_cast<T>(kLeastLength);
  for_rows<T>(dscore_TE, [&](std::int64_t t, T* dscore) {
    const T *score = score_rows[t], *x = x_rows[t];
    T* dx = dx_rows[t];
    // Where the length was too small to divide by, the score is linear in x.
    const double turned = sum_in_lanes(
        E, [=](std::int64_t e) { return x_norm[t] * mean_norm[e] > least ? dscore[e] * score[e] : T(0); });
    const T factor =
        x_norm[t] > T(0) ? static_cast<T>(turned / (static_cast<double>(x_norm[t]) * x_norm[t])) : T(0);
#pragma omp simd
    for (std::int64_t d = 0; d < D; ++d) dx[d] -= factor * x[d];
#pragma omp simd
    for (std::int64_t e = 0; e < E; ++e) {
      const T length = x_norm[t] * mean_norm[e];
      dscore[e] /= length > least ? length : least;
    }
  });
}

// A thread owns a range of columns: every sum is in token order.
template <class T>
void expert_sums_on_cpu(Tensor sum_ED, Tensor count_E, Tensor x_TD, Tensor expert_TK) {
  constexpr std::int64_t kColumns = 64;
  const Rows<T> x_rows(x_TD);
  const Rows<std::int32_t> expert_rows(expert_TK);
  const Rows<double> sum_rows(sum_ED);
  const std::int64_t D = x_TD.dim(1), E = sum_ED.rows(), K = expert_TK.dim(1), n_tokens = x_TD.rows();
  double* count = count_E.as<double>();
  std::fill_n(count, E, 0.0);
  for (std::int64_t t = 0; t < n_tokens; ++t)
    for (std::int64_t k = 0; k < K; ++k)
      if (const std::int32_t expert = expert_rows[t][k]; expert >= 0) count[expert] += 1;
#pragma omp parallel for schedule(static) if (x_TD.numel() >= kParallelElements)
  for (std::int64_t first = 0; first < D; first += kColumns) {
    const std::int64_t last = std::min(first + kColumns, D);
    for (std::int64_t e = 0; e < E; ++e) std::fill(sum_rows[e] + first, sum_rows[e] + last, 0.0);
    for (std::int64_t t = 0; t < n_tokens; ++t)
      for (std::int64_t k = 0; k < K; ++k) {
        const std::int32_t expert = expert_rows[t][k];
        if (expert < 0) continue;
        double* sum = sum_rows[expert];
        const T* x = x_rows[t];
#pragma omp simd
        for (std::int64_t d = first; d < last; ++d) sum[d] += static_cast<double>(x[d]);
      }
  }
}

#define INSTANTIATE(T)                                                                     \
  template void row_norm_l1_on_cpu<T>(Tensor, Tensor);                                     \
  template void row_norm_l2_on_cpu<T>(Tensor, Tensor);                                     \
  template void cosine_forward_on_cpu<T>(Tensor, Tensor, Tensor);                          \
  template void cosine_backward_on_cpu<T>(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor); \
  template void expert_sums_on_cpu<T>(Tensor, Tensor, Tensor, Tensor);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace

void row_norm_l1(Tensor norm_R, Tensor x_RD, Context& ctx) {
  const DType real = x_RD.dtype();
  Signature args(ctx);
  args(SY_ARG(x_RD), real)(SY_ARG(norm_R), real);
  run<&cuda::row_norm_l1>(ctx, real, SY_CPU(row_norm_l1_on_cpu), norm_R, x_RD);
}

void row_norm_l2(Tensor norm_R, Tensor x_RD, Context& ctx) {
  const DType real = x_RD.dtype();
  Signature args(ctx);
  args(SY_ARG(x_RD), real)(SY_ARG(norm_R), real);
  run<&cuda::row_norm_l2>(ctx, real, SY_CPU(row_norm_l2_on_cpu), norm_R, x_RD);
}

void cosine_forward(Tensor score_TE, Tensor x_norm_T, Tensor mean_norm_E, Context& ctx) {
  const DType real = score_TE.dtype();
  Signature args(ctx);
  args(SY_ARG(score_TE), real)(SY_ARG(x_norm_T), real)(SY_ARG(mean_norm_E), real);
  run<&cuda::cosine_forward>(ctx, real, SY_CPU(cosine_forward_on_cpu), score_TE, x_norm_T, mean_norm_E);
}

void cosine_backward(Tensor dscore_TE, Tensor dx_TD, Tensor score_TE, Tensor x_TD, Tensor x_norm_T,
                     Tensor mean_norm_E, Context& ctx) {
  const DType real = score_TE.dtype();
  Signature args(ctx);
  args(SY_ARG(score_TE), real)(SY_ARG(x_TD), real)(SY_ARG(x_norm_T), real)(SY_ARG(mean_norm_E), real);
  args(SY_ARG(dscore_TE), real)(SY_ARG(dx_TD), real);
  run<&cuda::cosine_backward>(ctx, real, SY_CPU(cosine_backward_on_cpu), dscore_TE, dx_TD, score_TE, x_TD,
                              x_norm_T, mean_norm_E);
}

void expert_sums(Tensor sum_ED, Tensor count_E, Tensor x_TD, Tensor expert_TK, Context& ctx) {
  const DType real = x_TD.dtype();
  Signature args(ctx);
  args(SY_ARG(x_TD), real)(SY_ARG(expert_TK), DType::i32);
  args(SY_ARG(sum_ED), DType::f64, kAnywhere)(SY_ARG(count_E), DType::f64, kAnywhere);
  run<&cuda::expert_sums>(ctx, real, SY_CPU(expert_sums_on_cpu), sum_ED, count_E, x_TD, expert_TK);
}

}  // namespace switchyard::ops
