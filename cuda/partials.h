// Sums over rows in two steps: each block of a kernel writes its own sums as a row of partial_BN, then these
// are added. The order is a function of the number of rows alone.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "device.h"
#include "elements.h"
#include "launch.h"
#include "reduce.h"

namespace switchyard::ops::cuda {

namespace {

constexpr int kPartialRanges = 8;  // of blocks, in each of which the blocks are added in ascending order

struct RangeSums {
  double of[kPartialRanges][kWarp];
};

// A warp has one range and 32 columns, so that neighbours read neighbours.
template <class Out, class Partial>
__global__ void __launch_bounds__(kPartialRanges* kWarp)
    sum_partials_kernel(Rows<Out> out_N, int row_size, Rows<const Partial> partial_BN, int n_blocks, int width,
                        bool add) {
  const int range = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int n = static_cast<int>(blockIdx.x) * kWarp + lane;
  const int per_range = (n_blocks + kPartialRanges - 1) / kPartialRanges, first = range * per_range;
  const int last = first + per_range < n_blocks ? first + per_range : n_blocks;
  auto& sums = static_shared<RangeSums>();
  double sum = 0;
  if (n < width) {
    SY_UNROLL_BY(16)  // as many loads are under way at once
    for (int b = first; b < last; ++b) sum += static_cast<double>(partial_BN[b][n]);
  }
  sums.of[range][lane] = sum;
  __syncthreads();
  if (range > 0 || n >= width) return;
  for (int r = 1; r < kPartialRanges; ++r) sum += sums.of[r][lane];
  Out& out = out_N[n / row_size][n % row_size];
  out = add ? static_cast<Out>(static_cast<double>(out) + sum) : static_cast<Out>(sum);
}

}  // namespace

// out_N = (or +=) the sum of partial_BN's rows, each an Out and a Partial: f32 or f64. In double. A matrix for
// out_N has N elements in all; its rows may be strided.
enum class Partials { set, add };
template <class Out, class Partial>
void sum_partials(const char* op, const Tensor& out_N, const Tensor& partial_BN, Partials write, Context& ctx) {
  launch(op, sum_partials_kernel<Out, Partial>,
         {blocks(ceil_div(out_N.numel(), kWarp)), kPartialRanges * kWarp}, ctx, rows_of<Out>(out_N),
         out_N.row_size(), rows_of<const Partial>(partial_BN), partial_BN.rows(), out_N.numel(),
         write == Partials::add);
}

// How rows are cut: as many blocks as fill a large device twice, each of a multiple of `unit` rows, which are
// worth a block.
struct RowRange {
  std::int64_t rows;  // of each block but the last
  std::int64_t blocks;
  RowRange(std::int64_t n_rows, std::int64_t unit, std::int64_t most_blocks = 264)
      : rows(std::max<std::int64_t>(1, ceil_div(n_rows, unit * most_blocks)) * unit),
        blocks(ceil_div(n_rows, rows)) {}
};

namespace {

constexpr int kSumThreads = 256;

template <int kCount, class F>
__global__ void __launch_bounds__(kSumThreads)
    sum_rows_kernel(F add, Rows<double> partial_BN, std::int64_t n_rows, std::int64_t rows_a_block) {
  const std::int64_t first = std::int64_t{blockIdx.x} * rows_a_block;
  const std::int64_t last = first + rows_a_block < n_rows ? first + rows_a_block : n_rows;
  double sum[kCount] = {};
  for (std::int64_t r = first + threadIdx.x; r < last; r += kSumThreads) add(r, sum);
  for (int i = 0; i < kCount; ++i) {
    const double of_block = reduce_block<Sum, kSumThreads>(sum[i]);
    if (threadIdx.x == 0) partial_BN[blockIdx.x][i] = of_block;
  }
}

}  // namespace

// sum_N (f64, kCount of them; set) = the sums over rows of what add(row, sum) adds to sum, an array of kCount
// doubles. Where sum_N lies on the host, the call waits. F is a struct with a const operator().
template <int kCount, class F>
void sum_rows(const char* op, const Tensor& sum_N, std::int64_t n_rows, Context& ctx, const F& add) {
  const RowRange range(n_rows, 4 * kSumThreads);
  ScratchScope scope(ctx.scratch);
  const Tensor partial_BN = ctx.scratch.take({range.blocks, kCount}, DType::f64);
  const Tensor buffer_N = device_buffer_for(sum_N, ctx);
  launch(op, sum_rows_kernel<kCount, F>, {blocks(range.blocks), kSumThreads}, ctx, add,
         rows_of<double>(partial_BN), n_rows, range.rows);
  sum_partials<double, double>(op, buffer_N, partial_BN, Partials::set, ctx);
  copy_back(sum_N, buffer_N);
}

}  // namespace switchyard::ops::cuda
