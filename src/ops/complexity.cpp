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
void slot_count_on_cpu(Tensor count_T, Tensor c_T, std::int64_t least, std::int64_t most) {
  const Rows<T> c(c_T);
  const Rows<std::int32_t> count(count_T);
  for (std::int64_t t = 0; t < c_T.rows(); ++t) {
    // A NaN, which compares with nothing, has the least.
    const T share = *c[t] > T(0) ? *c[t] : T(0);
    *count[t] = static_cast<std::int32_t>(
        std::floor(static_cast<T>(least) + static_cast<T>(most - least) * share + T(0.5)));
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

void slot_count(Tensor count_T, Tensor c_T, std::int64_t least, std::int64_t most, Context& ctx) {
  Signature args(ctx);
  args(SY_ARG(c_T), c_T.dtype())(SY_ARG(count_T), DType::i32);
  SY_CHECK(0 <= least && least <= most, "{} to {} experts", least, most);
  run<&cuda::slot_count>(ctx, c_T.dtype(), SY_CPU(slot_count_on_cpu), count_T, c_T, least, most);
}

void token_moments(Tensor moments_3, Tensor raw_T, Tensor token_T, Context& ctx) {
  Signature args(ctx);
  args(SY_ARG(raw_T), raw_T.dtype())(SY_ARG(token_T), DType::i32);
  args(SY_ARG(moments_3), DType::f64, kContiguous | kAnywhere);
  run<&cuda::token_moments>(ctx, raw_T.dtype(), SY_CPU(token_moments_on_cpu), moments_3, raw_T, token_T);
}

}  // namespace switchyard::ops
