#include "cpu/rope.h"

#include <cmath>

#include "cpu/reduce.h"

namespace switchyard::cpu {

namespace {

// Turns every pair by the table's angle times `direction`, 1 or -1.
template <class T>
void rotate(const Tensor& x_THN, const Tensor& cos_SP, const Tensor& sin_SP, std::int64_t seq_len,
            T direction) {
  const Rows<T> x_rows(x_THN), cos_rows(cos_SP), sin_rows(sin_SP);
  const std::int64_t pairs = cos_SP.dim(1), heads = x_THN.dim(1) / (2 * pairs);
#pragma omp parallel for schedule(static) if (x_THN.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < x_THN.rows(); ++t) {
    const T* cos = cos_rows[t % seq_len];
    const T* sin = sin_rows[t % seq_len];
    for (std::int64_t h = 0; h < heads; ++h) {
      T* low = x_rows[t] + h * 2 * pairs;
      T* high = low + pairs;
#pragma omp simd
      for (std::int64_t i = 0; i < pairs; ++i) {
        const T a = low[i], b = high[i], s = direction * sin[i];
        low[i] = a * cos[i] - b * s;
        high[i] = b * cos[i] + a * s;
      }
    }
  }
}

}  // namespace

template <class T>
void rope_table(Tensor cos_SP, Tensor sin_SP, double theta) {
  const Rows<T> cos_rows(cos_SP), sin_rows(sin_SP);
  const std::int64_t pairs = cos_SP.dim(1);
#pragma omp parallel for schedule(static) if (cos_SP.numel() >= kParallelElements)
  for (std::int64_t s = 0; s < cos_SP.rows(); ++s) {
    for (std::int64_t i = 0; i < pairs; ++i) {
      const double frequency = std::pow(theta, -static_cast<double>(i) / static_cast<double>(pairs));
      const double angle = static_cast<double>(s) * frequency;
      cos_rows[s][i] = static_cast<T>(std::cos(angle));
      sin_rows[s][i] = static_cast<T>(std::sin(angle));
    }
  }
}

template <class T>
void rope_forward(Tensor x_THN, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len) {
  rotate(x_THN, cos_SP, sin_SP, seq_len, T(1));
}

template <class T>
void rope_backward(Tensor dx_THN, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len) {
  rotate(dx_THN, cos_SP, sin_SP, seq_len, T(-1));
}

template void rope_table<float>(Tensor, Tensor, double);
template void rope_table<double>(Tensor, Tensor, double);
template void rope_forward<float>(Tensor, Tensor, Tensor, std::int64_t);
template void rope_forward<double>(Tensor, Tensor, Tensor, std::int64_t);
template void rope_backward<float>(Tensor, Tensor, Tensor, std::int64_t);
template void rope_backward<double>(Tensor, Tensor, Tensor, std::int64_t);

}  // namespace switchyard::cpu
