#include "ops/bias.h"

#include "ops/cpu/reduce.h"

namespace switchyard::ops {

namespace {

using namespace cpu;

template <class T>
void bias_forward_on_cpu(Tensor out_TN, Tensor bias_N) {
  const Rows<T> out_rows(out_TN);
  const T* bias = bias_N.as<T>();
  const std::int64_t N = bias_N.dim(0);
#pragma omp parallel for schedule(static) if (out_TN.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < out_TN.rows(); ++t) {
    T* out = out_rows[t];
#pragma omp simd
    for (std::int64_t n = 0; n < N; ++n) out[n] += bias[n];
  }
}

template <class T>
void bias_backward_on_cpu(Tensor dbias_N, Tensor dout_TN, Context& ctx) {
  const Rows<T> dout_rows(dout_TN);
  const std::int64_t n_rows = dout_TN.rows(), N = dbias_N.dim(0);
  ScratchScope scope(ctx.scratch);
  const RowBlocks blocks(n_rows);
  const Rows<T> partial_rows(ctx.scratch.take({blocks.count, N}, DTypeOf<T>::value));
#pragma omp parallel for schedule(static) if (dout_TN.numel() >= kParallelElements)
  for (std::int64_t block = 0; block < blocks.count; ++block) {
    T* partial = partial_rows[block];
    std::fill_n(partial, N, T(0));
    const std::int64_t last = std::min((block + 1) * blocks.rows, n_rows);
    for (std::int64_t t = block * blocks.rows; t < last; ++t) {
#pragma omp simd
      for (std::int64_t n = 0; n < N; ++n) partial[n] += dout_rows[t][n];
    }
  }
  add_block_sums(dbias_N.as<T>(), partial_rows, blocks, 0, N, false);
}

}  // namespace

void bias_forward(Tensor out_TN, Tensor bias_N, Context& ctx) {
  const DType real = out_TN.dtype();
  Signature args(ctx);
  args(SY_ARG(out_TN), real)(SY_ARG(bias_N), real);
  run<&cuda::bias_forward>(ctx, real, SY_CPU(bias_forward_on_cpu), out_TN, bias_N);
}

void bias_backward(Tensor dbias_N, Tensor dout_TN, Context& ctx) {
  const DType real = dout_TN.dtype();
  Signature args(ctx);
  args(SY_ARG(dout_TN), real)(SY_ARG(dbias_N), accumulation_dtype(real));
  run<&cuda::bias_backward>(ctx, real, SY_CPU(bias_backward_on_cpu), dbias_N, dout_TN);
}

}  // namespace switchyard::ops
