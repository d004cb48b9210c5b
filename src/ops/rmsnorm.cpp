#include "ops/rmsnorm.h"

#include <algorithm>

#include "ops/cpu/reduce.h"

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

}  // namespace switchyard::ops
