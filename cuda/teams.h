// Norms over groups of values: the threads of a group are its team, and each holds packs of 16 bytes of it in
// registers from one pass to the next.
#pragma once

#include <algorithm>
#include <bit>

#include "elements.h"
#include "launch.h"
#include "reduce.h"

namespace switchyard::ops::cuda {

constexpr int kTeamThreads = 256;  // of a block, at most

// A team of up to a warp is a power of two of lanes, and a block has several; else it is the whole block. Turn
// i of lane l is pack i * lanes + l. turns 0: the group is too wide.
struct Team {
  int lanes, turns;
  unsigned threads() const { return lanes <= kWarp ? kTeamThreads : static_cast<unsigned>(lanes); }
  int teams() const { return static_cast<int>(threads()) / lanes; }
  std::size_t shared_bytes(std::int64_t width) const {  // for add_teams()
    return teams() > 1 ? sizeof(float) * static_cast<std::size_t>(teams() * width) : 0;
  }
};
inline int lanes_for(std::int64_t packs) {
  return static_cast<int>(std::min<std::uint64_t>(kWarp, std::bit_ceil(static_cast<std::uint64_t>(packs))));
}

// A warp for up to `most_turns` packs a lane.
inline Team team_of_warp(std::int64_t packs, int most_turns) {
  const int lanes = lanes_for(packs);
  const auto turns = ceil_div(packs, lanes);
  return {lanes, turns <= most_turns ? static_cast<int>(turns) : 0};
}
// A warp or less, with no barrier, for up to 4 packs a lane; else the block, for up to as many a thread.
inline Team team_of_block(std::int64_t packs) {
  constexpr int kMostTurns = 4;
  Team team = team_of_warp(packs, kMostTurns);
  for (int turns = 1; team.turns == 0 && turns <= kMostTurns; turns *= 2) {
    const std::int64_t threads = ceil_div(ceil_div(packs, turns), kWarp) * kWarp;
    if (threads <= kTeamThreads) team = {static_cast<int>(threads), turns};
  }
  return team;
}

struct TeamSums {
  float of_warp[2][2][kTeamThreads / kWarp];
};
// The sums of value[i] over the team, for each of its threads, in an order that `lanes` alone decides. All
// threads of the block. Calls one after another alternate between two `buffers`, 0 and 1, so that one barrier
// does.
template <int kCount>
__device__ __forceinline__ void sum_over_team(float (&value)[kCount], int lanes, int buffer) {
  SY_UNROLL
  for (int i = 0; i < kCount; ++i) value[i] = reduce_lanes<Sum>(value[i], lanes < kWarp ? lanes : kWarp);
  if (lanes <= kWarp) return;
  static_assert(kCount <= 2);
  auto& sums = static_shared<TeamSums>();
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int i = 0; i < kCount; ++i) {
    if (threadIdx.x % kWarp == 0) sums.of_warp[buffer][i][warp] = value[i];
  }
  __syncthreads();
  SY_UNROLL
  for (int i = 0; i < kCount; ++i) {
    value[i] = sums.of_warp[buffer][i][0];
    for (int w = 1; w < lanes / kWarp; ++w) value[i] += sums.of_warp[buffer][i][w];
  }
}

// Blocks of a backward pass that a multiprocessor of 65,536 registers holds, each lane with so many packs of
// several rows and with its columns' sums.
constexpr int resident_blocks(int turns) { return turns == 1 ? 4 : turns == 2 ? 3 : 2; }
// Each team has so many groups at least: fewer are not worth a block's sums.
constexpr std::int64_t kRowsOfTeam = 4;
// Of all blocks: those of 132 multiprocessors, whatever the device has. The order of sums is a function of it.
constexpr std::int64_t team_blocks(int turns) { return 132 * resident_blocks(turns); }

// row_N[n] = the sum over the block's teams, in ascending order, of what they have for column n. sum: of this
// thread's packs, kSize columns each. All threads; the dynamic shared memory is of shared_bytes().
template <int kSize, int kTurns>
__device__ __forceinline__ void add_teams(float* row_N, const float (&sum)[kTurns * kSize], int lanes,
                                          int width) {
  const int teams = static_cast<int>(blockDim.x) / lanes, team = static_cast<int>(threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) - team * lanes;
  float* const sum_GN = teams > 1 ? static_cast<float*>(dynamic_shared()) : row_N;
  SY_UNROLL
  for (int turn = 0; turn < kTurns; ++turn) {
    const int n = (turn * lanes + lane) * kSize;
    if (n >= width) continue;
    SY_UNROLL
    for (int i = 0; i < kSize; ++i) sum_GN[team * width + n + i] = sum[turn * kSize + i];
  }
  if (teams == 1) return;
  __syncthreads();
  for (int n = static_cast<int>(threadIdx.x); n < width; n += static_cast<int>(blockDim.x)) {
    float of_column = 0;
    for (int g = 0; g < teams; ++g) of_column += sum_GN[g * width + n];
    row_N[n] = of_column;
  }
}

// Calls f.operator()<turns>() with the least of the numbers that is enough.
template <int kLeast, int... kMore, class F>
void with_turns(int turns, F&& f) {
  if constexpr (sizeof...(kMore) > 0) {
    if (turns > kLeast) return with_turns<kMore...>(turns, f);
  }
  f.template operator()<kLeast>();
}

}  // namespace switchyard::ops::cuda
