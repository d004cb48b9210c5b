#include "cpu/complexity.h"

#include <cmath>

#include "ops/cpu/reduce.h"
#include "ops/cpu/vector_math.h"

// Legend: T tokens. One thread: these are a few operations a token.

namespace switchyard::ops::cpu {

template <class T>
void complexity_calibrated(Tensor c_T, Tensor raw_T, double mean, double variance) {
  const Rows<T> c(c_T), raw(raw_T);
  const T center = static_cast<T>(mean),
          inverse = variance > 0 ? static_cast<T>(1 / std::sqrt(variance)) : T(0);
  for (std::int64_t t = 0; t < c_T.rows(); ++t) *c[t] = sigmoid_of((*raw[t] - center) * inverse);
}

template <class T>
void complexity_above(Tensor c_T, Tensor raw_T, double threshold) {
  const Rows<T> c(c_T), raw(raw_T);
  for (std::int64_t t = 0; t < c_T.rows(); ++t) *c[t] = *raw[t] > static_cast<T>(threshold) ? T(1) : T(0);
}

template <class T>
void slot_count(Tensor count_T, Tensor c_T, std::int64_t least, std::int64_t most) {
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
std::array<double, 3> token_moments(Tensor raw_T, Tensor skip_T) {
  const Rows<T> raw(raw_T);
  const Rows<std::int32_t> skip(skip_T);
  std::array<double, 3> moments{};
  for (std::int64_t t = 0; t < raw_T.rows(); ++t) {
    if (*skip[t] < 0) continue;
    const auto x = static_cast<double>(*raw[t]);
    moments[0] += 1;
    moments[1] += x;
    moments[2] += x * x;
  }
  return moments;
}

#define INSTANTIATE(T)                                                     \
  template void complexity_calibrated<T>(Tensor, Tensor, double, double);  \
  template void complexity_above<T>(Tensor, Tensor, double);               \
  template void slot_count<T>(Tensor, Tensor, std::int64_t, std::int64_t); \
  template std::array<double, 3> token_moments<T>(Tensor, Tensor);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace switchyard::ops::cpu
