// Layer normalisation with SiLU, all f32: a router's encoder has it. A team of threads a row (teams.h), which
// holds the row in registers: forward a warp, backward a warp or, of wide rows, a block, whose threads also
// keep the sums for weight and bias of their columns. Rows that are not of packs, or too wide, go element by
// element, backward with the sums in shared memory. Other than on the CPU a row's sums are in float32; the
// variance is of differences from the mean, so nothing cancels.
#include <algorithm>

#include "elements.h"
#include "launch.h"
#include "ops/norm.h"
#include "partials.h"
#include "reduce.h"
#include "silu.h"
#include "teams.h"

namespace switchyard::ops::cuda {

namespace {

constexpr int kWarps = 8;            // of a forward block
constexpr int kThreads = 4 * kWarp;  // of a backward block for any rows
constexpr int kSize = kPack<float>;

template <int kTurns>
__global__ void __launch_bounds__(kWarps* kWarp, kTurns == 8 ? 4 : 2)
    layernorm_forward_kernel(Rows<float> out_TD, Rows<float> mean_T, Rows<float> rstd_T, Rows<const float> x_TD,
                             const float* weight_D, const float* bias_D, float eps, std::int64_t n_rows,
                             int width) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t t = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (t >= n_rows) return;  // the whole warp
  Elements<float, kSize> x[kTurns];
  SY_UNROLL
  for (int turn = 0; turn < kTurns; ++turn) {
    const int d = (turn * kWarp + lane) * kSize;
    x[turn] = d < width ? load<kSize>(x_TD[t] + d) : Elements<float, kSize>{};
  }
  float sum = 0, squares = 0;
  SY_UNROLL
  for (int turn = 0; turn < kTurns; ++turn) {
    SY_UNROLL
    for (int i = 0; i < kSize; ++i) sum += x[turn].element[i];
  }
  const float mean = reduce_warp<Sum>(sum) / static_cast<float>(width);
  SY_UNROLL
  for (int turn = 0; turn < kTurns; ++turn) {
    if ((turn * kWarp + lane) * kSize >= width) continue;
    SY_UNROLL
    for (int i = 0; i < kSize; ++i) {
      x[turn].element[i] -= mean;
      squares += x[turn].element[i] * x[turn].element[i];
    }
  }
  const float rstd = rsqrtf(reduce_warp<Sum>(squares) / static_cast<float>(width) + eps);
  if (lane == 0) {
    *mean_T[t] = mean;
    *rstd_T[t] = rstd;
  }
  SY_UNROLL
  for (int turn = 0; turn < kTurns; ++turn) {
    const int d = (turn * kWarp + lane) * kSize;
    if (d >= width) continue;
    const auto weight = load<kSize>(weight_D + d), bias = load<kSize>(bias_D + d);
    SY_UNROLL
    for (int i = 0; i < kSize; ++i)
      x[turn].element[i] = silu(x[turn].element[i] * rstd * weight.element[i] + bias.element[i]);
    store<kSize>(out_TD[t] + d, x[turn]);
  }
}

// The same of any rows, which are read three times.
__global__ void __launch_bounds__(kWarps* kWarp)
    layernorm_forward_any_kernel(Rows<float> out_TD, Rows<float> mean_T, Rows<float> rstd_T,
                                 Rows<const float> x_TD, const float* weight_D, const float* bias_D, float eps,
                                 std::int64_t n_rows, int width) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t t = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (t >= n_rows) return;  // the whole warp
  const float* const x_D = x_TD[t];
  float sum = 0, squares = 0;
  for (int d = lane; d < width; d += kWarp) sum += x_D[d];
  const float mean = reduce_warp<Sum>(sum) / static_cast<float>(width);
  for (int d = lane; d < width; d += kWarp) squares += (x_D[d] - mean) * (x_D[d] - mean);
  const float rstd = rsqrtf(reduce_warp<Sum>(squares) / static_cast<float>(width) + eps);
  if (lane == 0) {
    *mean_T[t] = mean;
    *rstd_T[t] = rstd;
  }
  for (int d = lane; d < width; d += kWarp)
    out_TD[t][d] = silu((x_D[d] - mean) * rstd * weight_D[d] + bias_D[d]);
}

// With n = h weight + bias and s = sigmoid(n), the slope of n s is s (1 + n (1 - s)).
struct Gradient {
  float h, g;  // as in ops/norm.h
};
__device__ __forceinline__ Gradient gradient_of(float x, float dout, float mean, float rstd, float weight,
                                                float bias) {
  const float h = (x - mean) * rstd, n = h * weight + bias, s = sigmoid(n);
  return {h, dout * s * (1 + n * (1 - s))};
}

// A block goes over rows [first, last); its sums become one row of partial_BN: dweight, then dbias.
template <int kTurns>
__global__ void __launch_bounds__(kTeamThreads, resident_blocks(kTurns))
    layernorm_backward_kernel(Rows<float> dx_TD, Rows<float> partial_BN, Rows<const float> dout_TD,
                              Rows<const float> x_TD, Rows<const float> mean_T, Rows<const float> rstd_T,
                              const float* weight_D, const float* bias_D, std::int64_t n_rows,
                              std::int64_t rows_a_block, int width, int lanes) {
  const int teams = static_cast<int>(blockDim.x) / lanes, team = static_cast<int>(threadIdx.x) / lanes;
  const int first_d = (static_cast<int>(threadIdx.x) - team * lanes) * kSize, step = lanes * kSize;
  const std::int64_t first = std::int64_t{blockIdx.x} * rows_a_block;
  const std::int64_t last = first + rows_a_block < n_rows ? first + rows_a_block : n_rows;
  const float inverse_width = 1 / static_cast<float>(width);
  float dweight_D[kTurns * kSize] = {}, dbias_D[kTurns * kSize] = {};
  int buffer = 0;
  for (std::int64_t first_of_teams = first; first_of_teams < last; first_of_teams += teams, buffer ^= 1) {
    const std::int64_t t = first_of_teams + team;
    const bool inside = t < last;
    const float *const x_D = x_TD[t] + first_d, *const dout_D = dout_TD[t] + first_d;
    float* const dx_D = dx_TD[t] + first_d;
    const float mean = inside ? *mean_T[t] : 0, rstd = inside ? *rstd_T[t] : 0;
    Elements<float, kSize> h[kTurns]{}, w[kTurns]{}, dx[kTurns];  // x and dout first, as is what is loaded
    SY_UNROLL
    for (int turn = 0; turn < kTurns; ++turn) {
      if (!inside || first_d + turn * step >= width) continue;
      h[turn] = load<kSize>(x_D + turn * step);
      w[turn] = load<kSize>(dout_D + turn * step);
      dx[turn] = load<kSize>(dx_D + turn * step);
    }
    float sums[2] = {0, 0};  // of w, of w h
    SY_UNROLL
    for (int turn = 0; turn < kTurns; ++turn) {
      if (!inside || first_d + turn * step >= width) continue;
      const auto weight = load<kSize>(weight_D + first_d + turn * step),
                 bias = load<kSize>(bias_D + first_d + turn * step);
      SY_UNROLL
      for (int i = 0; i < kSize; ++i) {
        float &hi = h[turn].element[i], &wi = w[turn].element[i];
        const auto gradient = gradient_of(hi, wi, mean, rstd, weight.element[i], bias.element[i]);
        hi = gradient.h;
        wi = gradient.g * weight.element[i];
        sums[0] += wi;
        sums[1] += wi * hi;
        dweight_D[turn * kSize + i] += gradient.g * hi;
        dbias_D[turn * kSize + i] += gradient.g;
      }
    }
    sum_over_team(sums, lanes, buffer);
    const float w_mean = sums[0] * inverse_width, wh_mean = sums[1] * inverse_width;
    SY_UNROLL
    for (int turn = 0; turn < kTurns; ++turn) {
      if (!inside || first_d + turn * step >= width) continue;
      SY_UNROLL
      for (int i = 0; i < kSize; ++i)
        dx[turn].element[i] += rstd * (w[turn].element[i] - w_mean - h[turn].element[i] * wh_mean);
      store<kSize>(dx_D + turn * step, dx[turn]);
    }
  }
  float* const partial_N = partial_BN[blockIdx.x];
  add_teams<kSize, kTurns>(partial_N, dweight_D, lanes, width);
  __syncthreads();  // nobody reads the first sums any more
  add_teams<kSize, kTurns>(partial_N + width, dbias_D, lanes, width);
}

// The same of any rows, one after another: each is read twice, and the sums are in shared memory, a column with
// one thread.
__global__ void __launch_bounds__(kThreads)
    layernorm_backward_any_kernel(Rows<float> dx_TD, Rows<float> partial_BN, Rows<const float> dout_TD,
                                  Rows<const float> x_TD, Rows<const float> mean_T, Rows<const float> rstd_T,
                                  const float* weight_D, const float* bias_D, std::int64_t n_rows,
                                  std::int64_t rows_a_block, int width) {
  auto* const dweight_D = static_cast<float*>(dynamic_shared());
  float* const dbias_D = dweight_D + width;
  const int own = static_cast<int>(threadIdx.x);
  for (int d = own; d < width; d += kThreads) dweight_D[d] = dbias_D[d] = 0;
  const std::int64_t first = std::int64_t{blockIdx.x} * rows_a_block;
  const std::int64_t last = first + rows_a_block < n_rows ? first + rows_a_block : n_rows;
  for (std::int64_t t = first; t < last; ++t) {
    const float *const x_D = x_TD[t], *const dout_D = dout_TD[t];
    const float mean = *mean_T[t], rstd = *rstd_T[t];
    float w_sum = 0, wh_sum = 0;
    for (int d = own; d < width; d += kThreads) {
      const auto [h, g] = gradient_of(x_D[d], dout_D[d], mean, rstd, weight_D[d], bias_D[d]);
      w_sum += g * weight_D[d];
      wh_sum += g * weight_D[d] * h;
      dweight_D[d] += g * h;
      dbias_D[d] += g;
    }
    const float w_mean = reduce_block<Sum, kThreads>(w_sum) / static_cast<float>(width);
    const float wh_mean = reduce_block<Sum, kThreads>(wh_sum) / static_cast<float>(width);
    for (int d = own; d < width; d += kThreads) {
      const auto [h, g] = gradient_of(x_D[d], dout_D[d], mean, rstd, weight_D[d], bias_D[d]);
      dx_TD[t][d] += rstd * (g * weight_D[d] - w_mean - h * wh_mean);
    }
  }
  for (int d = own; d < width; d += kThreads) {
    partial_BN[blockIdx.x][d] = dweight_D[d];
    partial_BN[blockIdx.x][width + d] = dbias_D[d];
  }
}

bool are_packs(std::initializer_list<Tensor> tensors) {
  return std::all_of(tensors.begin(), tensors.end(),
                     [](const Tensor& tensor) { return rows_are_packs<float>(tensor); });
}

}  // namespace

void layernorm_silu_forward(Tensor out_TD, Tensor mean_T, Tensor rstd_T, Tensor x_TD, Tensor weight_D,
                            Tensor bias_D, double eps, Context& ctx) {
  const auto go = [&](auto kernel) {
    launch("layernorm_silu_forward", kernel, {blocks(ceil_div(x_TD.rows(), kWarps)), kWarps * kWarp}, ctx,
           rows_of<float>(out_TD), rows_of<float>(mean_T), rows_of<float>(rstd_T), rows_of<const float>(x_TD),
           weight_D.as<float>(), bias_D.as<float>(), eps, x_TD.rows(), x_TD.dim(1));
  };
  const auto turns = ceil_div(x_TD.dim(1), kWarp * kSize);
  if (!are_packs({out_TD, x_TD, weight_D, bias_D}) || turns > 16) return go(layernorm_forward_any_kernel);
  with_turns<8, 16>(static_cast<int>(turns), [&]<int kTurns>() { go(layernorm_forward_kernel<kTurns>); });
}

void layernorm_silu_backward(Tensor dx_TD, Tensor dweight_D, Tensor dbias_D, Tensor dout_TD, Tensor x_TD,
                             Tensor mean_T, Tensor rstd_T, Tensor weight_D, Tensor bias_D, Context& ctx) {
  const std::int64_t n_rows = x_TD.rows(), width = x_TD.dim(1);
  ScratchScope scope(ctx.scratch);
  Tensor partial_BN;
  const auto go = [&](auto kernel, const RowRange& range, unsigned threads, std::size_t shared_bytes,
                      auto... lanes) {
    partial_BN = ctx.scratch.take({range.blocks, 2 * width}, DType::f32);
    launch("layernorm_silu_backward", kernel, {blocks(range.blocks), threads, shared_bytes}, ctx,
           rows_of<float>(dx_TD), rows_of<float>(partial_BN), rows_of<const float>(dout_TD),
           rows_of<const float>(x_TD), rows_of<const float>(mean_T), rows_of<const float>(rstd_T),
           weight_D.as<float>(), bias_D.as<float>(), n_rows, range.rows, width, lanes...);
  };
  const Team team = team_of_block(ceil_div(width, kSize));
  if (are_packs({dx_TD, dout_TD, x_TD, weight_D, bias_D}) && team.turns > 0) {
    with_turns<1, 2, 4>(team.turns, [&]<int kTurns>() {
      go(layernorm_backward_kernel<kTurns>, RowRange(n_rows, kRowsOfTeam * team.teams(), team_blocks(kTurns)),
         team.threads(), team.shared_bytes(width), team.lanes);
    });
  } else {
    constexpr std::size_t kMaxSharedBytes = 160 * 1024;
    const std::size_t shared_bytes = 2 * sizeof(float) * static_cast<std::size_t>(width);
    SY_CHECK(shared_bytes <= kMaxSharedBytes, "layer normalisation over {} values; the kernel has room for {}",
             width, kMaxSharedBytes / (2 * sizeof(float)));
    // Four blocks for each multiprocessor of a large device.
    go(layernorm_backward_any_kernel, RowRange(n_rows, 8, 528), kThreads, shared_bytes);
  }
  const char* const op = "layernorm_silu_backward: sums";
  sum_partials<float, float>(op, dweight_D, partial_BN.columns(0, width), Partials::add, ctx);
  sum_partials<float, float>(op, dbias_D, partial_BN.columns(width, width), Partials::add, ctx);
}

}  // namespace switchyard::ops::cuda
