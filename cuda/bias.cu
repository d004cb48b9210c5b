// The gradient is a sum over rows in two steps: a block takes some rows and as many columns as a warp reads at
// once, each of its warps every eighth row, so that narrow outputs fill the device, too. out_TN and bias_N, or
// dout_TN, f32 or bf16; dbias_N is f32 always.
#include "ops/bias.h"

#include <algorithm>

#include "for_each_pack.h"
#include "partials.h"

namespace switchyard::ops::cuda {

namespace {

template <class T, int kSize>
struct Forward {
  Rows<T> out_TN;
  const T* bias_N;

  __device__ void operator()(std::int64_t t, std::int64_t n) const {
    auto out = load<kSize>(out_TN[t] + n);
    const auto bias = load<kSize>(bias_N + n);
    for (int i = 0; i < kSize; ++i)
      out.element[i] = from_float<T>(to_float(out.element[i]) + to_float(bias.element[i]));
    store<kSize>(out_TN[t] + n, out);
  }
};

constexpr int kWarps = 8, kThreads = kWarps * kWarp;

template <int kColumns>
struct WarpSums {
  float of[kWarps][kColumns];
};

// partial_BN[blockIdx.y], columns from blockIdx.x * kWarp * kSize on: the sum of the block's rows. Each warp
// adds its rows in ascending order, then the warps are added.
template <class T, int kSize>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(Rows<float> partial_BN, Rows<const T> dout_TN, std::int64_t n_rows,
                    std::int64_t rows_a_block, int width) {
  constexpr int kColumns = kWarp * kSize;
  auto& sums = static_shared<WarpSums<kColumns>>();
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int first_column = static_cast<int>(blockIdx.x) * kColumns, n = first_column + lane * kSize;
  const std::int64_t first = std::int64_t{blockIdx.y} * rows_a_block;
  const std::int64_t last = first + rows_a_block < n_rows ? first + rows_a_block : n_rows;
  float sum[kSize] = {};
  if (n < width) {
    SY_UNROLL_BY(4)
    for (std::int64_t t = first + warp; t < last; t += kWarps) {
      const auto dout = load<kSize>(dout_TN[t] + n);
      for (int i = 0; i < kSize; ++i) sum[i] += to_float(dout.element[i]);
    }
  }
  for (int i = 0; i < kSize; ++i) sums.of[warp][lane * kSize + i] = sum[i];
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kColumns && first_column + i < width; i += kThreads) {
    float of_block = 0;
    for (int w = 0; w < kWarps; ++w) of_block += sums.of[w][i];
    partial_BN[blockIdx.y][first_column + i] = of_block;
  }
}

}  // namespace

void bias_forward(Tensor out_TN, Tensor bias_N, Context& ctx) {
  with_element(out_TN.dtype(), [&]<class T>() {
    const bool packs = rows_are_packs<T>(out_TN) && rows_are_packs<T>(bias_N);
    with_pack<T>(packs, [&]<int kSize>() {
      for_each_pack<kSize>("bias_forward", out_TN.rows(), out_TN.dim(1), ctx,
                           Forward<T, kSize>{rows_of<T>(out_TN), bias_N.as<T>()});
    });
  });
}

void bias_backward(Tensor dbias_N, Tensor dout_TN, Context& ctx) {
  const std::int64_t n_rows = dout_TN.rows(), width = dout_TN.dim(1);
  ScratchScope scope(ctx.scratch);
  with_element(dout_TN.dtype(), [&]<class T>() {
    with_pack<T>(rows_are_packs<T>(dout_TN), [&]<int kSize>() {
      constexpr std::int64_t kFewestRows = 8 * kWarps;
      constexpr std::int64_t kBlocks = 528;  // four for each processor of a large device
      const std::int64_t column_blocks = ceil_div(width, kWarp * kSize);
      const RowRange range(n_rows, kFewestRows, std::max<std::int64_t>(kBlocks / column_blocks, 1));
      const Tensor partial_BN = ctx.scratch.take({range.blocks, width}, DType::f32);
      launch("bias_backward", backward_kernel<T, kSize>,
             {{blocks(column_blocks), blocks(range.blocks)}, kThreads}, ctx, rows_of<float>(partial_BN),
             rows_of<const T>(dout_TN), n_rows, range.rows, width);
      sum_partials<float, float>("bias_backward: blocks", dbias_N, partial_BN, Partials::add, ctx);
    });
  });
}

}  // namespace switchyard::ops::cuda
