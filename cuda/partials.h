// The second half of a sum over rows: each block of a kernel has written its own sums as a row of partial_BN,
// and here these are added. The order is a function of the number of blocks alone.
#pragma once

#include <cuda_runtime.h>

#include "launch.h"
#include "numeric.h"
#include "reduce.h"
#include "shared.h"

namespace switchyard::cuda {

namespace {

constexpr int kPartialRanges = 8;  // of blocks, in each of which the blocks are added in ascending order

struct RangeSums {
  double of[kPartialRanges][kWarp];
};

// A warp has one range and 32 columns, so that neighbours read neighbours.
template <class Out, class Partial>
__global__ void __launch_bounds__(kPartialRanges* kWarp)
    sum_partials_kernel(Out* out_N, Rows<const Partial> partial_BN, int n_blocks, int width, bool add) {
  const int range = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int n = static_cast<int>(blockIdx.x) * kWarp + lane;
  const int per_range = (n_blocks + kPartialRanges - 1) / kPartialRanges, first = range * per_range;
  const int last = first + per_range < n_blocks ? first + per_range : n_blocks;
  auto& sums = static_shared<RangeSums>();
  double sum = 0;
  if (n < width) {
    for (int b = first; b < last; ++b) sum += static_cast<double>(partial_BN[b][n]);
  }
  sums.of[range][lane] = sum;
  __syncthreads();
  if (range > 0 || n >= width) return;
  for (int r = 1; r < kPartialRanges; ++r) sum += sums.of[r][lane];
  out_N[n] = add ? static_cast<Out>(static_cast<double>(out_N[n]) + sum) : static_cast<Out>(sum);
}

}  // namespace

// out_N = (or +=) the sum of partial_BN's rows, each an Out and a Partial: f32 or f64. In double.
enum class Partials { set, add };
template <class Out, class Partial>
void sum_partials(const char* op, const Tensor& out_N, const Tensor& partial_BN, Partials write, Context& ctx) {
  launch(op, sum_partials_kernel<Out, Partial>,
         {blocks(ceil_div(out_N.numel(), kWarp)), kPartialRanges * kWarp}, ctx, out_N.as<Out>(),
         rows_of<const Partial>(partial_BN), partial_BN.rows(), out_N.numel(), write == Partials::add);
}

}  // namespace switchyard::cuda
