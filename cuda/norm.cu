#include "ops/norm.h"

#include <algorithm>

#include "divisor.h"
#include "elements.h"
#include "launch.h"
#include "partials.h"
#include "reduce.h"
#include "teams.h"

namespace switchyard::ops::cuda {

// A team of threads a group (teams.h), which holds the group in registers: each value is read once. Forward a
// team is a warp at most, so that there is no barrier; backward wide groups have a block, which leaves a thread
// room for the sums of its columns of dweight as well. Groups that are not of packs, or too wide, go element by
// element. Other than on the CPU the sum of squares is in float32. in, out, weight and their gradients f32, or
// all bf16 but for dweight_N, which is f32 always, as rstd_TG is. Statistics and sums in f32.

namespace {

constexpr int kWarps = 8;  // of a block

struct Groups {
  int n;
  Divisor of_row;  // how many a row has
  int width;
  float inverse_width;
};

template <class T, int kTurns>
__global__ void __launch_bounds__(kTeamThreads, kTurns == 1   ? 8
                                                : kTurns == 8 ? 4
                                                              : 2)
    rmsnorm_forward_kernel(Rows<T> out_TGN, Rows<float> rstd_TG, Rows<const T> in_TGN, const T* weight_N,
                           float eps, Groups s, int lanes) {
  constexpr int kSize = kPack<T>;
  const int teams = kTeamThreads / lanes, lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const int group = static_cast<int>(blockIdx.x) * teams + static_cast<int>(threadIdx.x) / lanes;
  const int t = group / s.of_row, g = group % s.of_row;
  const bool inside = group < s.n;  // lanes beside it stay for the sum of their warp
  const T* const in = in_TGN[t] + std::int64_t{g} * s.width;
  Packed<T> x[kTurns];
  float squares = 0;
  SY_UNROLL
  for (int turn = 0; turn < kTurns; ++turn) {
    const int n = (turn * lanes + lane) * kSize;
    x[turn] = Packed<T>::of(in + n, inside && n < s.width);
  }
  SY_UNROLL
  for (int turn = 0; turn < kTurns; ++turn) {
    const auto pack = x[turn].elements();
    SY_UNROLL
    for (int i = 0; i < kSize; ++i) squares += to_float(pack.element[i]) * to_float(pack.element[i]);
  }
  if constexpr (kTurns == 1) {
    squares = reduce_lanes<Sum>(squares, lanes);
  } else {  // all 32; a loop, over which ptxas does not keep what bf16 were converted to
    SY_UNROLL_BY(1)
    for (int step = kWarp / 2; step > 0; step /= 2) squares += __shfl_xor_sync(kFullWarp, squares, step);
  }
  if (!inside) return;
  const float rstd = rsqrtf(squares * s.inverse_width + eps);
  if (lane == 0) rstd_TG[t][g] = rstd;
  T* const out = out_TGN[t] + std::int64_t{g} * s.width;
  SY_UNROLL
  for (int turn = 0; turn < kTurns; ++turn) {
    const int n = (turn * lanes + lane) * kSize;
    if (n >= s.width) continue;
    const auto pack = x[turn].elements(), weight = load<kSize>(weight_N + n);
    Elements<T, kSize> y;
    SY_UNROLL
    for (int i = 0; i < kSize; ++i)
      y.element[i] = from_float<T>(to_float(pack.element[i]) * rstd * to_float(weight.element[i]));
    store<kSize>(out + n, y);
  }
}

// The same of any groups, one warp each, which reads it twice.
template <class T, int kSize>
__global__ void __launch_bounds__(kWarps* kWarp)
    rmsnorm_forward_any_kernel(Rows<T> out_TGN, Rows<float> rstd_TG, Rows<const T> in_TGN, const T* weight_N,
                               float eps, Groups s) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int group = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  if (group >= s.n) return;  // the whole warp
  const int t = group / s.of_row, g = group % s.of_row;
  const T* const in = in_TGN[t] + std::int64_t{g} * s.width;
  T* const out = out_TGN[t] + std::int64_t{g} * s.width;
  float squares = 0;
  for (int n = lane * kSize; n < s.width; n += kWarp * kSize) {
    const auto x = load<kSize>(in + n);
    for (int i = 0; i < kSize; ++i) squares += to_float(x.element[i]) * to_float(x.element[i]);
  }
  squares = reduce_warp<Sum>(squares);
  const float rstd = rsqrtf(squares * s.inverse_width + eps);
  if (lane == 0) rstd_TG[t][g] = rstd;
  for (int n = lane * kSize; n < s.width; n += kWarp * kSize) {
    const auto x = load<kSize>(in + n), weight = load<kSize>(weight_N + n);
    Elements<T, kSize> y;
    for (int i = 0; i < kSize; ++i)
      y.element[i] = from_float<T>(to_float(x.element[i]) * rstd * to_float(weight.element[i]));
    store<kSize>(out + n, y);
  }
}

// A block goes over groups [first, last), and its sums for dweight become a row of partial_BN.
template <class T, int kTurns>
__global__ void __launch_bounds__(kTeamThreads, resident_blocks(kTurns))
    rmsnorm_backward_kernel(Rows<T> din_TGN, Rows<float> partial_BN, Rows<const T> dout_TGN,
                            Rows<const T> in_TGN, Rows<const float> rstd_TG, const T* weight_N, Groups s,
                            int groups_a_block, int lanes) {
  constexpr int kSize = kPack<T>;
  const int teams = static_cast<int>(blockDim.x) / lanes, team = static_cast<int>(threadIdx.x) / lanes;
  const int first_n = (static_cast<int>(threadIdx.x) - team * lanes) * kSize, step = lanes * kSize;
  const int first = static_cast<int>(blockIdx.x) * groups_a_block, last = std::min(first + groups_a_block, s.n);
  Packed<T> weight[kTurns];
  float sum_N[kTurns * kSize] = {};
  SY_UNROLL
  for (int turn = 0; turn < kTurns; ++turn) {
    const int n = first_n + turn * step;
    weight[turn] = Packed<T>::of(weight_N + n, n < s.width);
  }
  int buffer = 0;
  for (int first_of_teams = first; first_of_teams < last; first_of_teams += teams, buffer ^= 1) {
    const int group = first_of_teams + team;
    const int t = group / s.of_row, g = group % s.of_row;
    const bool inside = group < last;
    const std::int64_t column = std::int64_t{g} * s.width + first_n;
    const T *const in = in_TGN[t] + column, *const dout = dout_TGN[t] + column;
    T* const din = din_TGN[t] + column;
    const float rstd = inside ? rstd_TG[t][g] : 0;
    Packed<T> x[kTurns], dy[kTurns], dx[kTurns];
    SY_UNROLL
    for (int turn = 0; turn < kTurns; ++turn) {
      const bool has = inside && first_n + turn * step < s.width;
      x[turn] = Packed<T>::of(in + turn * step, has);
      dy[turn] = Packed<T>::of(dout + turn * step, has);
      dx[turn] = Packed<T>::of(din + turn * step, has);
    }
    float product[1] = {0};
    SY_UNROLL
    for (int turn = 0; turn < kTurns; ++turn) {
      const auto xs = x[turn].elements(), dys = dy[turn].elements(), weights = weight[turn].elements();
      SY_UNROLL
      for (int i = 0; i < kSize; ++i) {
        const float dyi = to_float(dys.element[i]), normed = to_float(xs.element[i]) * rstd;
        product[0] += dyi * to_float(weights.element[i]) * normed;
        sum_N[turn * kSize + i] += dyi * normed;
      }
    }
    sum_over_team(product, lanes, buffer);
    const float mean = product[0] * s.inverse_width;
    SY_UNROLL
    for (int turn = 0; turn < kTurns; ++turn) {
      if (!inside || first_n + turn * step >= s.width) continue;
      const auto xs = x[turn].elements(), dys = dy[turn].elements(), weights = weight[turn].elements();
      auto dxs = dx[turn].elements();
      SY_UNROLL
      for (int i = 0; i < kSize; ++i) {
        const float dyi = to_float(dys.element[i]), normed = to_float(xs.element[i]) * rstd;
        dxs.element[i] = from_float<T>(to_float(dxs.element[i]) +
                                       rstd * (dyi * to_float(weights.element[i]) - normed * mean));
      }
      store<kSize>(din + turn * step, dxs);
    }
  }
  add_teams<kSize, kTurns>(partial_BN[blockIdx.x], sum_N, lanes, s.width);
}

// The same of any groups, a warp each: dweight is summed per warp in shared memory, where each lane has columns
// of its own, then over the warps in ascending order.
template <class T>
__global__ void __launch_bounds__(kWarps* kWarp)
    rmsnorm_backward_any_kernel(Rows<T> din_TGN, Rows<float> partial_BN, Rows<const T> dout_TGN,
                                Rows<const T> in_TGN, Rows<const float> rstd_TG, const T* weight_N, Groups s,
                                int groups_a_block) {
  auto* const sums_WN = static_cast<float*>(dynamic_shared());
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  float* const sum_N = sums_WN + warp * s.width;
  for (int n = lane; n < s.width; n += kWarp) sum_N[n] = 0;
  const int first = static_cast<int>(blockIdx.x) * groups_a_block, last = std::min(first + groups_a_block, s.n);
  for (int group = first + warp; group < last; group += warps) {
    const int t = group / s.of_row, g = group % s.of_row;
    const std::int64_t column = std::int64_t{g} * s.width;
    const T *const in = in_TGN[t] + column, *const dout = dout_TGN[t] + column;
    T* const din = din_TGN[t] + column;
    const float rstd = rstd_TG[t][g];
    float sum = 0;
    for (int n = lane; n < s.width; n += kWarp)
      sum += to_float(dout[n]) * to_float(weight_N[n]) * (to_float(in[n]) * rstd);
    const float mean = reduce_warp<Sum>(sum) * s.inverse_width;
    for (int n = lane; n < s.width; n += kWarp) {
      const float normed = to_float(in[n]) * rstd, dy = to_float(dout[n]);
      din[n] = from_float<T>(to_float(din[n]) + rstd * (dy * to_float(weight_N[n]) - normed * mean));
      sum_N[n] += dy * normed;
    }
  }
  __syncthreads();
  for (int n = static_cast<int>(threadIdx.x); n < s.width; n += static_cast<int>(blockDim.x)) {
    float sum = 0;
    for (int w = 0; w < warps; ++w) sum += sums_WN[w * s.width + n];
    partial_BN[blockIdx.x][n] = sum;
  }
}

template <class T>
bool groups_are_packs(const Tensor& x_TGN, const Tensor& weight_N) {
  return rows_are_packs<T>(x_TGN) && rows_are_packs<T>(weight_N) && weight_N.dim(0) % kPack<T> == 0;
}

Groups groups_of(const Tensor& rstd_TG, const Tensor& weight_N) {
  SY_CHECK(rstd_TG.numel() <= INT32_MAX / 2, "{} groups", rstd_TG.numel());
  return {static_cast<int>(rstd_TG.numel()), Divisor(static_cast<int>(rstd_TG.dim(1))),
          static_cast<int>(weight_N.dim(0)), 1 / static_cast<float>(weight_N.dim(0))};
}

}  // namespace

void rmsnorm_forward(Tensor out_TGN, Tensor rstd_TG, Tensor in_TGN, Tensor weight_N, double eps, Context& ctx) {
  const char* const op = "rmsnorm_forward";
  const Groups s = groups_of(rstd_TG, weight_N);
  with_element(in_TGN.dtype(), [&]<class T>() {
    const bool packs = groups_are_packs<T>(in_TGN, weight_N) && rows_are_packs<T>(out_TGN);
    const Team team = team_of_warp(ceil_div(s.width, kPack<T>), 16);
    const auto go = [&](auto kernel, const Launch& shape, auto... lanes) {
      launch(op, kernel, shape, ctx, rows_of<T>(out_TGN), rows_of<float>(rstd_TG), rows_of<const T>(in_TGN),
             weight_N.as<T>(), eps, s, lanes...);
    };
    if (packs && team.turns > 0) {
      return with_turns<1, 8, 16>(team.turns, [&]<int kTurns>() {
        go(rmsnorm_forward_kernel<T, kTurns>, {blocks(ceil_div(s.n, team.teams())), team.threads()},
           team.lanes);
      });
    }
    with_pack<T>(packs, [&]<int kSize>() {
      go(rmsnorm_forward_any_kernel<T, kSize>, {blocks(ceil_div(s.n, kWarps)), kWarps * kWarp});
    });
  });
}

void rmsnorm_backward(Tensor din_TGN, Tensor dweight_N, Tensor dout_TGN, Tensor in_TGN, Tensor rstd_TG,
                      Tensor weight_N, Context& ctx) {
  const char* const op = "rmsnorm_backward";
  const Groups s = groups_of(rstd_TG, weight_N);
  ScratchScope scope(ctx.scratch);
  with_element(in_TGN.dtype(), [&]<class T>() {
    Tensor partial_BN;
    const auto go = [&](auto kernel, const RowRange& range, unsigned threads, std::size_t shared_bytes,
                        auto... lanes) {
      partial_BN = ctx.scratch.take({range.blocks, s.width}, DType::f32);
      launch(op, kernel, {blocks(range.blocks), threads, shared_bytes}, ctx, rows_of<T>(din_TGN),
             rows_of<float>(partial_BN), rows_of<const T>(dout_TGN), rows_of<const T>(in_TGN),
             rows_of<const float>(rstd_TG), weight_N.as<T>(), s, range.rows, lanes...);
    };
    const bool packs =
        groups_are_packs<T>(in_TGN, weight_N) && rows_are_packs<T>(dout_TGN) && rows_are_packs<T>(din_TGN);
    const Team team = team_of_block(ceil_div(s.width, kPack<T>));
    if (packs && team.turns > 0) {
      with_turns<1, 2, 4>(team.turns, [&]<int kTurns>() {
        go(rmsnorm_backward_kernel<T, kTurns>, RowRange(s.n, kRowsOfTeam * team.teams(), team_blocks(kTurns)),
           team.threads(), team.shared_bytes(s.width), team.lanes);
      });
    } else {
      // As many warps as their sums find room in a block's shared memory.
      const std::int64_t most =
          std::min<std::int64_t>(128 * 1024, static_cast<std::int64_t>(shared_bytes_of_block()));
      const std::int64_t row_bytes = s.width * static_cast<std::int64_t>(sizeof(float));
      const std::int64_t warps = std::clamp<std::int64_t>(most / row_bytes, 1, kWarps);
      go(rmsnorm_backward_any_kernel<T>, RowRange(s.n, kWarps), static_cast<unsigned>(warps * kWarp),
         static_cast<std::size_t>(warps * row_bytes));
    }
    sum_partials<float, float>("rmsnorm_backward: dweight", dweight_N, partial_BN, Partials::add, ctx);
  });
}

}  // namespace switchyard::ops::cuda
