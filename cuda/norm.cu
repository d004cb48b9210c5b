#include "ops/norm.h"

#include <algorithm>

#include "elements.h"
#include "launch.h"
#include "partials.h"
#include "reduce.h"

namespace switchyard::ops::cuda {

// One warp a group, which it reads in packs of 16 bytes: no barrier, and the second pass over a group finds it
// in the L1 cache. Other than on the CPU the sum of squares is in float32. in, out, weight and their gradients
// f32, or all bf16 but for dweight_N, which is f32 always, as rstd_TG is. Statistics and sums in f32.

namespace {

constexpr int kWarps = 8;  // of a block

template <class T, int kSize>
__global__ void __launch_bounds__(kWarps* kWarp)
    rmsnorm_forward_kernel(Rows<T> out_TGN, Rows<float> rstd_TG, Rows<const T> in_TGN, const T* weight_N,
                           float eps, std::int64_t n_groups, int groups_a_row, int width) {
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
    rmsnorm_backward_kernel(Rows<T> din_TGN, Rows<float> partial_BN, Rows<const T> dout_TGN,
                            Rows<const T> in_TGN, Rows<const float> rstd_TG, const T* weight_N,
                            std::int64_t n_groups, std::int64_t groups_a_block, int groups_a_row, int width) {
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
      launch("rmsnorm_forward", rmsnorm_forward_kernel<T, kSize>,
             {blocks(ceil_div(n_groups, kWarps)), kWarps * kWarp}, ctx, rows_of<T>(out_TGN),
             rows_of<float>(rstd_TG), rows_of<const T>(in_TGN), weight_N.as<T>(), eps, n_groups, groups_a_row,
             width);
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
      launch("rmsnorm_backward", rmsnorm_backward_kernel<T, kSize>,
             {blocks(range.blocks), static_cast<unsigned>(warps * kWarp),
              static_cast<std::size_t>(warps * row_bytes)},
             ctx, rows_of<T>(din_TGN), rows_of<float>(partial_BN), rows_of<const T>(dout_TGN),
             rows_of<const T>(in_TGN), rows_of<const float>(rstd_TG), weight_N.as<T>(), n_groups, range.rows,
             groups_a_row, width);
    });
  });
  sum_partials<float, float>("rmsnorm_backward: dweight", dweight_N, partial_BN, Partials::add, ctx);
}

// Forward: one warp a row, read in packs of 16 bytes; its later passes find the row in the L1 cache. Backward:
// one block a row, and the block keeps the sums for weight and bias of all its rows in shared memory, a column
// with one thread: wide rows leave room for several blocks. Other than on the CPU a row's sums are in float32;
// the variance is of differences from the mean, so nothing cancels. All f32: a router's encoder has it.

namespace {

constexpr int kThreads = 4 * kWarp;  // of a backward block

__device__ __forceinline__ float sigmoid(float x) { return 1 / (1 + expf(-x)); }

template <int kSize>
__global__ void __launch_bounds__(kWarps* kWarp)
    layernorm_forward_kernel(Rows<float> out_TD, Rows<float> mean_T, Rows<float> rstd_T, Rows<const float> x_TD,
                             const float* weight_D, const float* bias_D, float eps, std::int64_t n_rows,
                             int width) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t t = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (t >= n_rows) return;  // the whole warp
  const float* const x_D = x_TD[t];
  float sum = 0, squares = 0;
  for (int d = lane * kSize; d < width; d += kWarp * kSize) {
    const auto x = load<kSize>(x_D + d);
    for (int i = 0; i < kSize; ++i) sum += x.element[i];
  }
  const float mean = reduce_warp<Sum>(sum) / static_cast<float>(width);
  for (int d = lane * kSize; d < width; d += kWarp * kSize) {
    const auto x = load<kSize>(x_D + d);
    for (int i = 0; i < kSize; ++i) squares += (x.element[i] - mean) * (x.element[i] - mean);
  }
  const float rstd = 1 / sqrtf(reduce_warp<Sum>(squares) / static_cast<float>(width) + eps);
  if (lane == 0) {
    *mean_T[t] = mean;
    *rstd_T[t] = rstd;
  }
  for (int d = lane * kSize; d < width; d += kWarp * kSize) {
    const auto x = load<kSize>(x_D + d), weight = load<kSize>(weight_D + d), bias = load<kSize>(bias_D + d);
    Elements<float, kSize> out;
    for (int i = 0; i < kSize; ++i) {
      const float n = (x.element[i] - mean) * rstd * weight.element[i] + bias.element[i];
      out.element[i] = n * sigmoid(n);
    }
    store<kSize>(out_TD[t] + d, out);
  }
}

// With n = h weight + bias and s = sigmoid(n), the slope of n s is s (1 + n (1 - s)).
struct Gradient {
  float h, g, w;  // as in ops/norm.h
};
__device__ __forceinline__ Gradient gradient_of(float x, float dout, float mean, float rstd, float weight,
                                                float bias) {
  const float h = (x - mean) * rstd, n = h * weight + bias, s = sigmoid(n), g = dout * s * (1 + n * (1 - s));
  return {h, g, g * weight};
}

// A block goes over rows [first, last); its sums become one row of partial_BN: dweight, then dbias.
template <int kSize>
__global__ void __launch_bounds__(kThreads)
    layernorm_backward_kernel(Rows<float> dx_TD, Rows<float> partial_BN, Rows<const float> dout_TD,
                              Rows<const float> x_TD, Rows<const float> mean_T, Rows<const float> rstd_T,
                              const float* weight_D, const float* bias_D, std::int64_t n_rows,
                              std::int64_t rows_a_block, int width) {
  auto* const dweight_D = static_cast<float*>(dynamic_shared());
  float* const dbias_D = dweight_D + width;
  const int own = static_cast<int>(threadIdx.x) * kSize;
  for (int d = own; d < width; d += kThreads * kSize) {
    for (int i = 0; i < kSize; ++i) dweight_D[d + i] = dbias_D[d + i] = 0;
  }
  const std::int64_t first = std::int64_t{blockIdx.x} * rows_a_block;
  const std::int64_t last = first + rows_a_block < n_rows ? first + rows_a_block : n_rows;
  for (std::int64_t t = first; t < last; ++t) {
    const float *const x_D = x_TD[t], *const dout_D = dout_TD[t];
    const float mean = *mean_T[t], rstd = *rstd_T[t];
    float w_sum = 0, wh_sum = 0;
    for (int d = own; d < width; d += kThreads * kSize) {
      const auto x = load<kSize>(x_D + d), dout = load<kSize>(dout_D + d);
      const auto weight = load<kSize>(weight_D + d), bias = load<kSize>(bias_D + d);
      for (int i = 0; i < kSize; ++i) {
        const auto [h, g, w] =
            gradient_of(x.element[i], dout.element[i], mean, rstd, weight.element[i], bias.element[i]);
        w_sum += w;
        wh_sum += w * h;
        dweight_D[d + i] += g * h;
        dbias_D[d + i] += g;
      }
    }
    const float w_mean = reduce_block<Sum, kThreads>(w_sum) / static_cast<float>(width);
    const float wh_mean = reduce_block<Sum, kThreads>(wh_sum) / static_cast<float>(width);
    for (int d = own; d < width; d += kThreads * kSize) {
      const auto x = load<kSize>(x_D + d), dout = load<kSize>(dout_D + d);
      const auto weight = load<kSize>(weight_D + d), bias = load<kSize>(bias_D + d);
      auto dx = load<kSize>(dx_TD[t] + d);
      for (int i = 0; i < kSize; ++i) {
        const auto [h, g, w] =
            gradient_of(x.element[i], dout.element[i], mean, rstd, weight.element[i], bias.element[i]);
        dx.element[i] += rstd * (w - w_mean - h * wh_mean);
      }
      store<kSize>(dx_TD[t] + d, dx);
    }
  }
  for (int d = own; d < width; d += kThreads * kSize) {
    for (int i = 0; i < kSize; ++i) {
      partial_BN[blockIdx.x][d + i] = dweight_D[d + i];
      partial_BN[blockIdx.x][width + d + i] = dbias_D[d + i];
    }
  }
}

bool are_packs(std::initializer_list<Tensor> tensors) {
  return std::all_of(tensors.begin(), tensors.end(),
                     [](const Tensor& tensor) { return rows_are_packs<float>(tensor); });
}

}  // namespace

void layernorm_silu_forward(Tensor out_TD, Tensor mean_T, Tensor rstd_T, Tensor x_TD, Tensor weight_D,
                            Tensor bias_D, double eps, Context& ctx) {
  with_pack<float>(are_packs({out_TD, x_TD, weight_D, bias_D}), [&]<int kSize>() {
    launch("layernorm_silu_forward", layernorm_forward_kernel<kSize>,
           {blocks(ceil_div(x_TD.rows(), kWarps)), kWarps * kWarp}, ctx, rows_of<float>(out_TD),
           rows_of<float>(mean_T), rows_of<float>(rstd_T), rows_of<const float>(x_TD), weight_D.as<float>(),
           bias_D.as<float>(), eps, x_TD.rows(), x_TD.dim(1));
  });
}

void layernorm_silu_backward(Tensor dx_TD, Tensor dweight_D, Tensor dbias_D, Tensor dout_TD, Tensor x_TD,
                             Tensor mean_T, Tensor rstd_T, Tensor weight_D, Tensor bias_D, Context& ctx) {
  constexpr std::int64_t kBlocks = 528, kFewestRows = 8;  // four blocks for each processor of a large device
  constexpr std::size_t kMaxSharedBytes = 160 * 1024;
  const std::int64_t n_rows = x_TD.rows(), width = x_TD.dim(1);
  const std::size_t shared_bytes = 2 * sizeof(float) * static_cast<std::size_t>(width);
  SY_CHECK(shared_bytes <= kMaxSharedBytes, "layer normalisation over {} values; the kernel has room for {}",
           width, kMaxSharedBytes / (2 * sizeof(float)));
  const std::int64_t rows_a_block = std::max(kFewestRows, ceil_div(n_rows, kBlocks));
  const std::int64_t n_blocks = ceil_div(n_rows, rows_a_block);
  ScratchScope scope(ctx.scratch);
  const Tensor partial_BN = ctx.scratch.take({n_blocks, 2 * width}, DType::f32);
  with_pack<float>(are_packs({dx_TD, dout_TD, x_TD, weight_D, bias_D}), [&]<int kSize>() {
    launch("layernorm_silu_backward", layernorm_backward_kernel<kSize>,
           {blocks(n_blocks), kThreads, shared_bytes}, ctx, rows_of<float>(dx_TD), rows_of<float>(partial_BN),
           rows_of<const float>(dout_TD), rows_of<const float>(x_TD), rows_of<const float>(mean_T),
           rows_of<const float>(rstd_T), weight_D.as<float>(), bias_D.as<float>(), n_rows, rows_a_block, width);
  });
  const char* const op = "layernorm_silu_backward: sums";
  sum_partials<float, float>(op, dweight_D, partial_BN.columns(0, width), Partials::add, ctx);
  sum_partials<float, float>(op, dbias_D, partial_BN.columns(width, width), Partials::add, ctx);
}

}  // namespace switchyard::ops::cuda
