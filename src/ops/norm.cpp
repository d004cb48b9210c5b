#include "ops/norm.h"

#include <algorithm>
#include <cmath>

#include "ops/cpu/reduce.h"
#include "ops/cpu/vector_math.h"

namespace switchyard::ops {

namespace {

using namespace cpu;

template <class T>
void rmsnorm_forward_on_cpu(Tensor out_TGN, Tensor rstd_TG, Tensor in_TGN, Tensor weight_N, double eps) {
  const Rows<T> out_rows(out_TGN), rstd_rows(rstd_TG), in_rows(in_TGN);
  const T* weight = weight_N.as<T>();
  const std::int64_t groups = rstd_TG.dim(1), width = weight_N.dim(0);
#pragma omp parallel for schedule(static) if (in_TGN.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < in_TGN.rows(); ++t) {
    for (std::int64_t g = 0; g < groups; ++g) {
      const T* in = in_rows[t] + g * width;
      T* out = out_rows[t] + g * width;
      const T rstd = reciprocal_rms(in, width, eps);
      rstd_rows[t][g] = rstd;
#pragma omp simd
      for (std::int64_t n = 0; n < width; ++n) out[n] = in[n] * rstd * weight[n];
    }
  }
}

template <class T>
void rmsnorm_backward_on_cpu(Tensor din_TGN, Tensor dweight_N, Tensor dout_TGN, Tensor in_TGN, Tensor rstd_TG,
                             Tensor weight_N, Context& ctx) {
  const Rows<T> din_rows(din_TGN), dout_rows(dout_TGN), in_rows(in_TGN), rstd_rows(rstd_TG);
  const T* weight = weight_N.as<T>();
  const std::int64_t n_rows = in_TGN.rows(), groups = rstd_TG.dim(1), width = weight_N.dim(0);
  const bool parallel = in_TGN.numel() >= kParallelElements;

  ScratchScope scope(ctx.scratch);
  const RowBlocks blocks(n_rows);
  const Rows<T> partial_rows(ctx.scratch.take({blocks.count, width}, DTypeOf<T>::value));
#pragma omp parallel for schedule(static) if (parallel)
  for (std::int64_t block = 0; block < blocks.count; ++block) {
    T* partial = partial_rows[block];  // the block's part of dweight
    std::fill_n(partial, width, T(0));
    const std::int64_t last = std::min((block + 1) * blocks.rows, n_rows);
    for (std::int64_t t = block * blocks.rows; t < last; ++t) {
      for (std::int64_t g = 0; g < groups; ++g) {
        const T* dout = dout_rows[t] + g * width;
        const T* in = in_rows[t] + g * width;
        T* din = din_rows[t] + g * width;
        const T rstd = rstd_rows[t][g];
        const double sum =
            sum_in_lanes(width, [=](std::int64_t n) { return dout[n] * weight[n] * (in[n] * rstd); });
        const T mean = static_cast<T>(sum / static_cast<double>(width));
#pragma omp simd
        for (std::int64_t n = 0; n < width; ++n) {
          const T x = in[n] * rstd;
          din[n] += rstd * (dout[n] * weight[n] - x * mean);
          partial[n] += dout[n] * x;
        }
      }
    }
  }

  add_block_sums(dweight_N.as<T>(), partial_rows, blocks, 0, width, parallel);
}

// Rows of in are G groups of N.
void check_inputs(Signature& args, const Tensor& in_TGN, const Tensor& rstd_TG, const Tensor& weight_N) {
  const DType real = in_TGN.dtype();
  args(SY_ARG(rstd_TG), accumulation_dtype(real))(SY_ARG(weight_N), real, kContiguous);
  args(SY_ARG(in_TGN), Shape{args['T'], args['G'] * args['N']}, real);
}

}  // namespace

void rmsnorm_forward(Tensor out_TGN, Tensor rstd_TG, Tensor in_TGN, Tensor weight_N, double eps, Context& ctx) {
  Signature args(ctx);
  check_inputs(args, in_TGN, rstd_TG, weight_N);
  args.like(in_TGN, SY_ARG(out_TGN));
  run<&cuda::rmsnorm_forward>(ctx, in_TGN.dtype(), SY_CPU(rmsnorm_forward_on_cpu), out_TGN, rstd_TG, in_TGN,
                              weight_N, eps);
}

void rmsnorm_backward(Tensor din_TGN, Tensor dweight_N, Tensor dout_TGN, Tensor in_TGN, Tensor rstd_TG,
                      Tensor weight_N, Context& ctx) {
  Signature args(ctx);
  check_inputs(args, in_TGN, rstd_TG, weight_N);
  args.like(in_TGN, SY_ARG(din_TGN)).like(in_TGN, SY_ARG(dout_TGN));
  args(SY_ARG(dweight_N), rstd_TG.dtype(), kContiguous);
  run<&cuda::rmsnorm_backward>(ctx, in_TGN.dtype(), SY_CPU(rmsnorm_backward_on_cpu), din_TGN, dweight_N,
                               dout_TGN, in_TGN, rstd_TG, weight_N);
}

namespace {

using namespace cpu;

template <class T>
void layernorm_silu_forward_on_cpu(Tensor out_TD, Tensor mean_T, Tensor rstd_T, Tensor x_TD, Tensor weight_D,
                                   Tensor bias_D, double eps) {
  const Rows<T> out_rows(out_TD), x_rows(x_TD), mean_rows(mean_T), rstd_rows(rstd_T);
  const T *weight = weight_D.as<T>(), *bias = bias_D.as<T>();
  const std::int64_t D = x_TD.dim(1);
#pragma omp parallel for schedule(static) if (x_TD.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < x_TD.rows(); ++t) {
    const T* x = x_rows[t];
    T* out = out_rows[t];
    const double mean = sum_in_lanes(D, [x](std::int64_t i) { return x[i]; }) / static_cast<double>(D);
    const double squares = sum_in_lanes(D, [x, mean](std::int64_t i) {
      const double difference = static_cast<double>(x[i]) - mean;
      return difference * difference;
    });
    const T m = static_cast<T>(mean),
            rstd = static_cast<T>(1 / std::sqrt(squares / static_cast<double>(D) + eps));
    *mean_rows[t] = m;
    *rstd_rows[t] = rstd;
#pragma omp simd
    for (std::int64_t i = 0; i < D; ++i) {
      const T n = (x[i] - m) * rstd * weight[i] + bias[i];
      out[i] = n * sigmoid_of(n);
    }
  }
}

template <class T>
void layernorm_silu_backward_on_cpu(Tensor dx_TD, Tensor dweight_D, Tensor dbias_D, Tensor dout_TD, Tensor x_TD,
                                    Tensor mean_T, Tensor rstd_T, Tensor weight_D, Tensor bias_D,
                                    Context& ctx) {
  const Rows<T> dx_rows(dx_TD), dout_rows(dout_TD), x_rows(x_TD), mean_rows(mean_T), rstd_rows(rstd_T);
  const T *weight = weight_D.as<T>(), *bias = bias_D.as<T>();
  const std::int64_t n_rows = x_TD.rows(), D = x_TD.dim(1);
  const bool parallel = x_TD.numel() >= kParallelElements;

  ScratchScope scope(ctx.scratch);
  const RowBlocks blocks(n_rows);
  // Of each block: its part of dweight, its part of dbias, and room for the row at hand.
  const Rows<T> partial_rows(ctx.scratch.take({blocks.count, 4 * D}, DTypeOf<T>::value));
#pragma omp parallel for schedule(static) if (parallel)
  for (std::int64_t block = 0; block < blocks.count; ++block) {
    T *weight_part = partial_rows[block], *bias_part = weight_part + D, *w = bias_part + D, *h = w + D;
    std::fill_n(weight_part, 2 * D, T(0));
    const std::int64_t last = std::min((block + 1) * blocks.rows, n_rows);
    for (std::int64_t t = block * blocks.rows; t < last; ++t) {
      const T *x = x_rows[t], *dout = dout_rows[t];
      const T m = *mean_rows[t], rstd = *rstd_rows[t];
#pragma omp simd
      for (std::int64_t i = 0; i < D; ++i) {
        h[i] = (x[i] - m) * rstd;
        const T n = h[i] * weight[i] + bias[i], s = sigmoid_of(n);
        const T g = dout[i] * s * (T(1) + n * (T(1) - s));
        weight_part[i] += g * h[i];
        bias_part[i] += g;
        w[i] = g * weight[i];
      }
      const auto width = static_cast<double>(D);
      const T w_mean = static_cast<T>(sum_in_lanes(D, [w](std::int64_t i) { return w[i]; }) / width);
      const T wh_mean = static_cast<T>(sum_in_lanes(D, [w, h](std::int64_t i) { return w[i] * h[i]; }) / width);
      T* dx = dx_rows[t];
#pragma omp simd
      for (std::int64_t i = 0; i < D; ++i) dx[i] += rstd * (w[i] - w_mean - h[i] * wh_mean);
    }
  }

  add_block_sums(dweight_D.as<T>(), partial_rows, blocks, 0, D, parallel);
  add_block_sums(dbias_D.as<T>(), partial_rows, blocks, D, D, parallel);
}

void check_inputs(Signature& args, const Tensor& x_TD, const Tensor& mean_T, const Tensor& rstd_T,
                  const Tensor& weight_D, const Tensor& bias_D) {
  const DType real = x_TD.dtype();
  args(SY_ARG(x_TD), real)(SY_ARG(mean_T), real)(SY_ARG(rstd_T), real);
  args(SY_ARG(weight_D), real, kContiguous)(SY_ARG(bias_D), real, kContiguous);
}

}  // namespace

void layernorm_silu_forward(Tensor out_TD, Tensor mean_T, Tensor rstd_T, Tensor x_TD, Tensor weight_D,
                            Tensor bias_D, double eps, Context& ctx) {
  const DType real = x_TD.dtype();
  Signature args(ctx);
  check_inputs(args, x_TD, mean_T, rstd_T, weight_D, bias_D);
  args(SY_ARG(out_TD), real);
  run<&cuda::layernorm_silu_forward>(ctx, real, SY_CPU(layernorm_silu_forward_on_cpu), out_TD, mean_T, rstd_T,
                                     x_TD, weight_D, bias_D, eps);
}

void layernorm_silu_backward(Tensor dx_TD, Tensor dweight_D, Tensor dbias_D, Tensor dout_TD, Tensor x_TD,
                             Tensor mean_T, Tensor rstd_T, Tensor weight_D, Tensor bias_D, Context& ctx) {
  const DType real = x_TD.dtype();
  Signature args(ctx);
  check_inputs(args, x_TD, mean_T, rstd_T, weight_D, bias_D);
  args(SY_ARG(dx_TD), real)(SY_ARG(dout_TD), real)(SY_ARG(dweight_D), real)(SY_ARG(dbias_D), real);
  run<&cuda::layernorm_silu_backward>(ctx, real, SY_CPU(layernorm_silu_backward_on_cpu), dx_TD, dweight_D,
                                      dbias_D, dout_TD, x_TD, mean_T, rstd_T, weight_D, bias_D);
}

}  // namespace switchyard::ops
