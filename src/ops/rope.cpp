#include "ops/rope.h"

#include <cmath>

#include "ops/cpu/reduce.h"

namespace switchyard::ops {

namespace {

using namespace cpu;

// Turns every pair by the table's angle times `direction`, 1 or -1. Neighbouring pairs are 2 elements apart and
// their halves 1, half-split ones 1 apart and their halves `pairs`.
template <class T>
void rotate(const Tensor& x_THN, const Tensor& cos_SP, const Tensor& sin_SP, std::int64_t seq_len,
            const RopeLayout& layout, T direction) {
  const Rows<T> x_rows(x_THN), cos_rows(cos_SP), sin_rows(sin_SP);
  const std::int64_t pairs = cos_SP.dim(1), heads = x_THN.dim(1) / layout.head_dim;
  const bool halves = layout.pairs == RopePairs::halves;
#pragma omp parallel for schedule(static) if (x_THN.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < x_THN.rows(); ++t) {
    const T* cos = cos_rows[t % seq_len];
    const T* sin = sin_rows[t % seq_len];
    for (std::int64_t h = 0; h < heads; ++h) {
      T* x = x_rows[t] + (h + 1) * layout.head_dim - 2 * pairs;
      if (halves) {
        T* high = x + pairs;
#pragma omp simd
        for (std::int64_t i = 0; i < pairs; ++i) {
          const T a = x[i], b = high[i], s = direction * sin[i];
          x[i] = a * cos[i] - b * s;
          high[i] = b * cos[i] + a * s;
        }
      } else {
#pragma omp simd
        for (std::int64_t i = 0; i < pairs; ++i) {
          const T a = x[2 * i], b = x[2 * i + 1], s = direction * sin[i];
          x[2 * i] = a * cos[i] - b * s;
          x[2 * i + 1] = b * cos[i] + a * s;
        }
      }
    }
  }
}

template <class T>
void rope_table_on_cpu(Tensor cos_SP, Tensor sin_SP, Tensor frequency_P, double scale) {
  const Rows<T> cos_rows(cos_SP), sin_rows(sin_SP);
  const double* frequency = frequency_P.as<double>();
  const std::int64_t pairs = cos_SP.dim(1);
#pragma omp parallel for schedule(static) if (cos_SP.numel() >= kParallelElements)
  for (std::int64_t s = 0; s < cos_SP.rows(); ++s) {
    for (std::int64_t i = 0; i < pairs; ++i) {
      const double angle = static_cast<double>(s) * frequency[i];
      cos_rows[s][i] = static_cast<T>(scale * std::cos(angle));
      sin_rows[s][i] = static_cast<T>(scale * std::sin(angle));
    }
  }
}

template <class T>
void rope_forward_on_cpu(Tensor x_THN, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len,
                         const RopeLayout& layout) {
  rotate(x_THN, cos_SP, sin_SP, seq_len, layout, T(1));
}

template <class T>
void rope_backward_on_cpu(Tensor dx_THN, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len,
                          const RopeLayout& layout) {
  rotate(dx_THN, cos_SP, sin_SP, seq_len, layout, T(-1));
}

void check_table(Signature& args, const Tensor& cos_SP, const Tensor& sin_SP) {
  args(SY_ARG(cos_SP), cos_SP.dtype())(SY_ARG(sin_SP), cos_SP.dtype());
  SY_CHECK(args['P'] > 0, "a head has no pairs");
}

void check_rotation(Signature& args, const Tensor& x_THN, const Tensor& cos_SP, const Tensor& sin_SP,
                    std::int64_t seq_len, const RopeLayout& layout) {
  check_table(args, cos_SP, sin_SP);
  SY_CHECK(cos_SP.dtype() == accumulation_dtype(x_THN.dtype()), "the table is {} for rows of {}",
           name_of(cos_SP.dtype()), name_of(x_THN.dtype()));
  SY_CHECK(seq_len > 0 && seq_len <= args['S'], "sequences of {} positions, a table of {}", seq_len, args['S']);
  SY_CHECK(layout.head_dim >= 2 * args['P'], "{} pairs in a head of {}", args['P'], layout.head_dim);
  const std::int64_t heads = x_THN.dim(1) / layout.head_dim;
  args(SY_ARG(x_THN), Shape{x_THN.rows(), heads * layout.head_dim}, x_THN.dtype());
}

}  // namespace

void rope_table(Tensor cos_SP, Tensor sin_SP, Tensor frequency_P, double scale, Context& ctx) {
  Signature args(ctx);
  check_table(args, cos_SP, sin_SP);
  args(SY_ARG(frequency_P), DType::f64, kAnywhere);
  run<&cuda::rope_table>(ctx, cos_SP.dtype(), SY_CPU(rope_table_on_cpu), cos_SP, sin_SP, frequency_P, scale);
}

void rope_forward(Tensor x_THN, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len, const RopeLayout& layout,
                  Context& ctx) {
  Signature args(ctx);
  check_rotation(args, x_THN, cos_SP, sin_SP, seq_len, layout);
  run<&cuda::rope_forward>(ctx, x_THN.dtype(), SY_CPU(rope_forward_on_cpu), x_THN, cos_SP, sin_SP, seq_len,
                           layout);
}

void rope_backward(Tensor dx_THN, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len, const RopeLayout& layout,
                   Context& ctx) {
  Signature args(ctx);
  check_rotation(args, dx_THN, cos_SP, sin_SP, seq_len, layout);
  run<&cuda::rope_backward>(ctx, dx_THN.dtype(), SY_CPU(rope_backward_on_cpu), dx_THN, cos_SP, sin_SP, seq_len,
                            layout);
}

}  // namespace switchyard::ops
