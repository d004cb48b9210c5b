// One warp a group, which it reads in packs of 16 bytes: no barrier, and the second pass over a group finds it
// in the L1 cache. Other than on the CPU the sum of squares is in float32. in, out, weight and their gradients
// f32, or all bf16 but for dweight_N, which is f32 always, as rstd_TG is. Statistics and sums in f32.
#include "ops/rmsnorm.h"

#include <algorithm>

#include "elements.h"
#include "launch.h"
#include "partials.h"
#include "reduce.h"

namespace switchyard::ops::cuda {

namespace {

constexpr int kWarps = 8;  // of a block

template <class T, int kSize>
__global__ void __launch_bounds__(kWarps* kWarp)
    forward_kernel(Rows<T> out_TGN, Rows<float> rstd_TG, Rows<const T> in_TGN, const T* weight_N, float eps,
                   std::int64_t n_groups, int groups_a_row, int width) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t group = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (group >= n_groups) return;  // the whole warp
  const std::int64_t t = group / groups_a_row, g = group % groups_a_row;
  const T* in = in_TGN[t] + g * width;
  T* out = out_TGN[t] + g * width;
  float squares = 0;
  for (int n = lane * kSize; n < width; n += kWarp * kSize) {
    const auto x = load<kSize>(in + n);
    for (int i = 0; i < kSize; ++i) squares += to_float(x.element[i]) * to_float(x.element[i]);
  }
  squares = reduce_warp<Sum>(squares);
  const float rstd = 1 / sqrtf(squares / static_cast<float>(width) + eps);
  if (lane == 0) rstd_TG[t][g] = rstd;
  for (int n = lane * kSize; n < width; n += kWarp * kSize) {
    const auto x = load<kSize>(in + n), weight = load<kSize>(weight_N + n);
    Elements<T, kSize> y;
    for (int i = 0; i < kSize; ++i)
      y.element[i] = from_float<T>(to_float(x.element[i]) * rstd * to_float(weight.element[i]));
    store<kSize>(out + n, y);
  }
}

// A block goes over groups [first, last). dweight is summed per warp in shared memory, where each lane has
// columns of its own, then over the warps in ascending order: partial_BN has one row a block.
template <class T, int kSize>
__global__ void __launch_bounds__(kWarps* kWarp)
    backward_kernel(Rows<T> din_TGN, Rows<float> partial_BN, Rows<const T> dout_TGN, Rows<const T> in_TGN,
                    Rows<const float> rstd_TG, const T* weight_N, std::int64_t n_groups,
                    std::int64_t groups_a_block, int groups_a_row, int width) {
  auto* const sums_WN = static_cast<float*>(dynamic_shared());
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  float* const sum_N = sums_WN + warp * width;
  for (int n = lane * kSize; n < width; n += kWarp * kSize) {
    for (int i = 0; i < kSize; ++i) sum_N[n + i] = 0;
  }
  const std::int64_t first = std::int64_t{blockIdx.x} * groups_a_block;
  const std::int64_t last = first + groups_a_block < n_groups ? first + groups_a_block : n_groups;
  for (std::int64_t group = first + warp; group < last; group += warps) {
    const std::int64_t t = group / groups_a_row, g = group % groups_a_row;
    const T* in = in_TGN[t] + g * width;
    const T* dout = dout_TGN[t] + g * width;
    T* din = din_TGN[t] + g * width;
    const float rstd = rstd_TG[t][g];
    float sum = 0;
    for (int n = lane * kSize; n < width; n += kWarp * kSize) {
      const auto x = load<kSize>(in + n), dy = load<kSize>(dout + n), weight = load<kSize>(weight_N + n);
      for (int i = 0; i < kSize; ++i)
        sum += to_float(dy.element[i]) * to_float(weight.element[i]) * (to_float(x.element[i]) * rstd);
    }
    const float mean = reduce_warp<Sum>(sum) / static_cast<float>(width);
    for (int n = lane * kSize; n < width; n += kWarp * kSize) {
      const auto x = load<kSize>(in + n), dy = load<kSize>(dout + n), weight = load<kSize>(weight_N + n);
      auto dx = load<kSize>(din + n);
      for (int i = 0; i < kSize; ++i) {
        const float normed = to_float(x.element[i]) * rstd, dyi = to_float(dy.element[i]);
        dx.element[i] =
            from_float<T>(to_float(dx.element[i]) + rstd * (dyi * to_float(weight.element[i]) - normed * mean));
        sum_N[n + i] += dyi * normed;
      }
      store<kSize>(din + n, dx);
    }
  }
  __syncthreads();
  for (int n = static_cast<int>(threadIdx.x); n < width; n += static_cast<int>(blockDim.x)) {
    float sum = 0;
    for (int w = 0; w < warps; ++w) sum += sums_WN[w * width + n];
    partial_BN[blockIdx.x][n] = sum;
  }
}

template <class T>
bool groups_are_packs(const Tensor& x_TGN, const Tensor& weight_N) {
  return rows_are_packs<T>(x_TGN) && rows_are_packs<T>(weight_N) && weight_N.dim(0) % kPack<T> == 0;
}

}  // namespace

void rmsnorm_forward(Tensor out_TGN, Tensor rstd_TG, Tensor in_TGN, Tensor weight_N, double eps, Context& ctx) {
  const std::int64_t groups_a_row = rstd_TG.dim(1), n_groups = rstd_TG.numel(), width = weight_N.dim(0);
  with_element(in_TGN.dtype(), [&]<class T>() {
    with_pack<T>(groups_are_packs<T>(in_TGN, weight_N) && rows_are_packs<T>(out_TGN), [&]<int kSize>() {
      launch("rmsnorm_forward", forward_kernel<T, kSize>, {blocks(ceil_div(n_groups, kWarps)), kWarps * kWarp},
             ctx, rows_of<T>(out_TGN), rows_of<float>(rstd_TG), rows_of<const T>(in_TGN), weight_N.as<T>(), eps,
             n_groups, groups_a_row, width);
    });
  });
}

void rmsnorm_backward(Tensor din_TGN, Tensor dweight_N, Tensor dout_TGN, Tensor in_TGN, Tensor rstd_TG,
                      Tensor weight_N, Context& ctx) {
  const std::int64_t groups_a_row = rstd_TG.dim(1), n_groups = rstd_TG.numel(), width = weight_N.dim(0);
  // As many warps as their sums find room in a block's shared memory.
  const std::int64_t most =
      std::min<std::int64_t>(128 * 1024, static_cast<std::int64_t>(shared_bytes_of_block()));
  const std::int64_t row_bytes = width * static_cast<std::int64_t>(sizeof(float));
  const std::int64_t warps = std::clamp<std::int64_t>(most / row_bytes, 1, kWarps);
  const RowRange range(n_groups, kWarps);
  ScratchScope scope(ctx.scratch);
  const Tensor partial_BN = ctx.scratch.take({range.blocks, width}, DType::f32);
  with_element(in_TGN.dtype(), [&]<class T>() {
    const bool packs =
        groups_are_packs<T>(in_TGN, weight_N) && rows_are_packs<T>(dout_TGN) && rows_are_packs<T>(din_TGN);
    with_pack<T>(packs, [&]<int kSize>() {
      launch("rmsnorm_backward", backward_kernel<T, kSize>,
             {blocks(range.blocks), static_cast<unsigned>(warps * kWarp),
              static_cast<std::size_t>(warps * row_bytes)},
             ctx, rows_of<T>(din_TGN), rows_of<float>(partial_BN), rows_of<const T>(dout_TGN),
             rows_of<const T>(in_TGN), rows_of<const float>(rstd_TG), weight_N.as<T>(), n_groups, range.rows,
             groups_a_row, width);
    });
  });
  sum_partials<float, float>("rmsnorm_backward: dweight", dweight_N, partial_BN, Partials::add, ctx);
}

}  // namespace switchyard::ops::cuda
