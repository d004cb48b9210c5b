// Kernels for matrix products, dense or grouped by expert: each block computes a tile of 128 x 128 outputs. One
// is for tensor cores (operands bf16, or float rounded to bf16 on the way), one for float32. On tensor cores
// two products of experts have SwiGLU in their epilogues, where the sums are still in registers.
//   M rows, N columns, K summed over, E experts
#pragma once

#include <algorithm>
#include <type_traits>

#include "elements.h"
#include "gemm.h"
#include "launch.h"
#include "mma.h"
#include "reduce.h"
#include "silu.h"
#include "warp_per_row.h"

namespace switchyard::ops::cuda {

namespace {

template <class T, class Out>
struct Product {
  Rows<const T> a, b;
  Rows<Out> c_MN;  // = a b, plus the addend
  int m, n, k;
  int tiles_m, tiles_n;         // the grid has a block for each pair
  Rows<const Out> addend_MN{};  // may be c_MN; null: none
  // Grouped: of expert e are the rows [offset_Ep[e], offset_Ep[e+1]).
  //   nt, nn: of a and c, m in all; each expert has a b of its own
  //   tn: of a and b, k in all; each expert has a c of its own
  const int* offset_Ep = nullptr;  // null: one product
  int n_experts = 0;
  std::int64_t expert_stride = 0;  // elements from one expert's matrix to the next
};

constexpr int kTile = 128;  // rows and columns of c that a block computes

// What a block computes: rows [m_first, m_end) and a tile's columns from n_first on, summed over [k_first,
// k_end). No rows: it has nothing to do.
struct Tile {
  int m_first, m_end, n_first, k_first, k_end;
  int expert;
};

// Row tile number `tile` of the experts' rows, each expert's cut into tiles from its first row on. All lanes of
// the warp ask for the same tile and receive the same answer. A tile past the last one has no rows.
__device__ __forceinline__ Tile find_grouped_rows(const int* offset_Ep, int n_experts, int tile) {
  for (int first_expert = 0; first_expert < n_experts; first_expert += kWarp) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, e = first_expert + lane;
    const int first = e < n_experts ? offset_Ep[e] : 0, end = e < n_experts ? offset_Ep[e + 1] : 0;
    const int tiles = (end - first + kTile - 1) / kTile;
    int through = tiles;  // tiles of this chunk's experts up to and with e
    for (int delta = 1; delta < kWarp; delta *= 2) {
      const int before = __shfl_up_sync(kFullWarp, through, static_cast<unsigned>(delta));
      if (lane >= delta) through += before;
    }
    const unsigned reached = __ballot_sync(kFullWarp, tile < through);
    if (reached != 0) {
      const int owner = __ffs(static_cast<int>(reached)) - 1;
      const int tile_of_expert = tile - __shfl_sync(kFullWarp, through - tiles, owner);
      const int m_first = __shfl_sync(kFullWarp, first, owner) + tile_of_expert * kTile;
      const int expert_end = __shfl_sync(kFullWarp, end, owner);
      return {m_first, std::min(m_first + kTile, expert_end), 0, 0, 0, first_expert + owner};
    }
    tile -= __shfl_sync(kFullWarp, through, kWarp - 1);
  }
  return {};
}

// Tile number `index`. Blocks that run side by side work on a band of row tiles, column after column, so that
// they find one another's operands in the L2 cache.
template <GemmLayout kLayout, int kTileN = kTile, class T, class Out>
__device__ __forceinline__ Tile find_tile(const Product<T, Out>& p, int index) {
  constexpr int kBand = 8;
  const int band = index / (kBand * p.tiles_n) * kBand, height = std::min(kBand, p.tiles_m - band);
  const int place = index - band * p.tiles_n;
  int tile_m = band + place % height;
  Tile tile{};
  tile.k_end = p.k;
  if (p.offset_Ep != nullptr && a_along_k(kLayout)) {
    tile = find_grouped_rows(p.offset_Ep, p.n_experts, tile_m);
    tile.k_end = p.k;
  } else {
    if (p.offset_Ep != nullptr) {
      const int tiles_each = p.tiles_m / p.n_experts;
      tile.expert = tile_m / tiles_each;
      tile_m %= tiles_each;
      tile.k_first = p.offset_Ep[tile.expert];
      tile.k_end = p.offset_Ep[tile.expert + 1];
      if (tile.k_first == tile.k_end) return {};
    }
    tile.m_first = tile_m * kTile;
    tile.m_end = std::min(tile.m_first + kTile, p.m);
  }
  tile.n_first = place / height * kTileN;
  return tile;
}

// The product of the tile's expert: p with b or c moved there.
template <GemmLayout kLayout, class T, class Out>
__device__ __forceinline__ Product<T, Out> of_expert(Product<T, Out> p, int expert) {
  const std::int64_t moved = expert * p.expert_stride;
  if constexpr (a_along_k(kLayout)) {
    p.b.data += moved;
  } else {
    p.c_MN.data += moved;
    if (p.addend_MN.data != nullptr) p.addend_MN.data += moved;
  }
  return p;
}

// kSize neighbours in a row of c, from column n on.
template <int kSize, class Out>
__device__ __forceinline__ void write(Out* c_N, const Out* addend_N, int n, const float (&value)[kSize]) {
  const bool add = addend_N != nullptr;
  Elements<Out, kSize> result{};
  if (add) result = load<kSize>(addend_N + n);
  for (int i = 0; i < kSize; ++i)
    result.element[i] = from_float<Out>(add ? to_float(result.element[i]) + value[i] : value[i]);
  store<kSize>(c_N + n, result);
}

// ---- bf16 on tensor cores ----
// Four warps, each with 64 x 64 outputs in registers: two blocks find room on a multiprocessor. Operands come
// through a ring of kStages tiles in shared memory; while one is multiplied the next ones are on their way.

constexpr int kMmaThreads = 128, kStages = 4, kTileK = 32;
constexpr int kChunk = 8;  // bf16 in 16 bytes: what ldmatrix and async_copy_16 move
constexpr int kWarpTile = 64, kFragmentM = 16, kFragmentN = 8, kFragmentK = 16;

struct MmaStage {
  bf16 a[kTile * kTileK], b[kTile * kTileK];
};
constexpr std::size_t kMmaSharedBytes = kStages * sizeof(MmaStage);

// Where a chunk of a tile with kColumns columns lies. Chunks of a row change places from row to row: then the
// eight rows that ldmatrix reads at a time lie in different banks.
template <int kColumns>
__device__ __forceinline__ int chunk_place(int row, int chunk) {
  constexpr int kChunks = kColumns / kChunk, kBankChunks = 8;  // chunks in all 32 banks together
  const int turn = kChunks >= kBankChunks ? row % kBankChunks : row / (kBankChunks / kChunks) % kChunks;
  return (row * kChunks + (chunk ^ turn)) * kChunk;
}

// The first `valid` of eight elements, the rest zero. kPacks: all are valid or none.
template <bool kPacks, class T>
__device__ __forceinline__ Elements<bf16, kChunk> rounded_chunk(const T* from, int valid) {
  constexpr int kSize = kPacks ? kPack<T> : 1;
  Elements<bf16, kChunk> chunk;
  SY_UNROLL
  for (int i = 0; i < kChunk; i += kSize) {
    Elements<T, kSize> some{};
    if (i < valid) some = load<kSize>(from + i);
    for (int j = 0; j < kSize; ++j) chunk.element[i + j] = from_float<bf16>(to_float(some.element[j]));
  }
  return chunk;
}

// How the rows of b, each a column of c, are numbered in tiles. halves: eight of the first half, eight of the
// second and so on, so that neighbouring fragments of a thread's sums hold a gate and the up that belongs to
// it.
enum class Order { as_stored, halves };

// A thread's share of an operand's tiles, which lie in shared memory as [kTile, kTileK] where the operand lies
// along K, else as [kTileK, kTile]: a chunk in every kRowsATurn-th row. kPacks: the operand's rows begin at
// multiples of 16 bytes, and those of float are whole packs.
template <bool kAlongK, bool kPacks, Order kOrder, class T>
class OperandTiles {
 public:
  // The operand's rows or columns [first, end), of which there may be more than kTile, from k on.
  __device__ __forceinline__ OperandTiles(const Rows<const T>& from, int first, int end, int k, int k_end)
      : stride_(from.stride) {
    const int row = static_cast<int>(threadIdx.x) / kChunks, chunk = static_cast<int>(threadIdx.x) % kChunks;
    const int column = chunk * kChunk;
    to_ = chunk_place<kColumns>(row, chunk);
    if constexpr (kOrder == Order::halves) {
      from_ = from[row / 8 % 2 * (end / 2) + (first + row) / 16 * 8 + row % 8] + k + column;
    } else {
      from_ = kAlongK ? from[first + row] + k + column : from[k + row] + first + column;
    }
    rows_left_ = (kAlongK ? end - first : k_end - k) - row;
    columns_left_ = (kAlongK ? k_end - k : end - first) - column;
  }
  // Copies the next tile; zeros where the operand ends. bf16 packs do not pass through registers and have
  // arrived after async_wait.
  __device__ __forceinline__ void copy_next(bf16* tile) {
    SY_UNROLL_BY(kPacks ? kRows / kRowsATurn : 1)  // one at a time where registers are short
    for (int row = 0; row < kRows; row += kRowsATurn) {
      const int valid = row < rows_left_ ? std::clamp(columns_left_, 0, int{kChunk}) : 0;
      const T* const from = from_ + (kOrder == Order::halves ? row / 2 : row) * stride_;
      bf16* const to = tile + to_ + row * kColumns;  // chunks change places alike in all turns
      if constexpr (kPacks && std::is_same_v<T, bf16>) {
        async_copy_16(to, from, valid * static_cast<int>(sizeof(bf16)));
      } else {
        store<kChunk>(to, rounded_chunk<kPacks>(from, valid));
      }
    }
    from_ += kAlongK ? kTileK : kTileK * stride_;
    (kAlongK ? columns_left_ : rows_left_) -= kTileK;
  }

 private:
  static constexpr int kRows = kAlongK ? kTile : kTileK, kColumns = kAlongK ? kTileK : kTile;
  static constexpr int kChunks = kColumns / kChunk, kRowsATurn = kMmaThreads / kChunks;
  static_assert(kRowsATurn % 8 == 0);
  static_assert(kOrder == Order::as_stored || (kAlongK && kRowsATurn % 16 == 0));

  const T* from_;
  std::int64_t stride_;
  int to_, rows_left_, columns_left_;
};

// The 16 x 16 piece at row or column `first` and at k as four 8 x 8 matrices. kKFirst: the matrices' order is
// along K first (b's fragments of two neighbouring columns of c), else across it first (a's fragment).
template <bool kAlongK, bool kKFirst>
__device__ __forceinline__ void load_fragment(unsigned (&r)[4], const bf16* tile, int first, int k) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, row = lane % 8, matrix = lane / 8;
  const int of_k = 8 * (kKFirst ? matrix % 2 : matrix / 2), of_other = 8 * (kKFirst ? matrix / 2 : matrix % 2);
  if constexpr (kAlongK) {
    ldmatrix_x4(r, tile + chunk_place<kTileK>(first + of_other + row, (k + of_k) / kChunk));
  } else {
    ldmatrix_x4_transposed(r, tile + chunk_place<kTile>(k + of_k + row, (first + of_other) / kChunk));
  }
}

// Of 16 columns from n on, in two halves `left` and `right`, lane p of a quad has columns 2p and 2p + 1 of
// each. Lanes exchange pairs, so that each has four neighbours and the quad's accesses are whole sectors of 32
// bytes. Returns the first one's column. All lanes come.
__device__ __forceinline__ int exchange_pairs(float (&four)[4], int n, const float (&left)[2],
                                              const float (&right)[2]) {
  const int p = static_cast<int>(threadIdx.x) % 4;
  const bool odd = p % 2 != 0;
  SY_UNROLL
  for (int q = 0; q < 2; ++q) {
    const float other = __shfl_xor_sync(kFullWarp, odd ? left[q] : right[q], 1);
    four[q] = odd ? other : left[q];
    four[2 + q] = odd ? right[q] : other;
  }
  return n + (odd ? kFragmentN : 0) + p / 2 * 4;
}

// Writes those columns, as far as there are any. All lanes come, `valid` or not.
template <bool kPacks, class Out>
__device__ __forceinline__ void write_quad(Out* c_N, const Out* addend_N, int n, int n_end,
                                           const float (&left)[2], const float (&right)[2], bool valid) {
  if constexpr (kPacks) {
    float four[4];
    n = exchange_pairs(four, n, left, right);
    if (valid && n < n_end) write<4>(c_N, addend_N, n, four);
  } else {
    const int p = static_cast<int>(threadIdx.x) % 4;
    for (int q = 0; q < 2; ++q) {
      const int column = n + 2 * p + q;
      if (valid && column < n_end) write<1>(c_N, addend_N, column, {left[q]});
      if (valid && column + kFragmentN < n_end) write<1>(c_N, addend_N, column + kFragmentN, {right[q]});
    }
  }
}

// A warp's outputs, spread over its lanes as mma_16x8x16 has them: pieces of 16 x 8.
constexpr int kAcross = kWarpTile / kFragmentN, kDown = kWarpTile / kFragmentM;
using WarpSums = float[kDown][kAcross][4];
__device__ __forceinline__ int first_row_of_warp() {
  return static_cast<int>(threadIdx.x) / kWarp / 2 * kWarpTile;
}
__device__ __forceinline__ int first_column_of_warp() {
  return static_cast<int>(threadIdx.x) / kWarp % 2 * kWarpTile;
}

// sum = the warp's part of the tile, by all threads of the block.
template <GemmLayout kLayout, bool kPacks, Order kOrder, class T, class Out>
__device__ __forceinline__ void multiply_tile(WarpSums& sum, const Product<T, Out>& p, const Tile& tile) {
  MmaStage* const stages = static_cast<MmaStage*>(dynamic_shared());
  const int steps = (tile.k_end - tile.k_first + kTileK - 1) / kTileK;
  OperandTiles<a_along_k(kLayout), kPacks, Order::as_stored, T> a_tiles(p.a, tile.m_first, tile.m_end,
                                                                        tile.k_first, tile.k_end);
  OperandTiles<b_along_k(kLayout), kPacks, kOrder, T> b_tiles(p.b, tile.n_first, p.n, tile.k_first, tile.k_end);
  const auto copy_step = [&](int step) {
    if (step < steps) {
      a_tiles.copy_next(stages[step % kStages].a);
      b_tiles.copy_next(stages[step % kStages].b);
    }
    async_commit();  // an empty group too: the groups count the steps
  };

  const int warp_m = first_row_of_warp(), warp_n = first_column_of_warp();
  // The warp's part of the tile lies beyond c: of an expert with few rows only half is computed.
  const bool idle = tile.m_first + warp_m >= tile.m_end || tile.n_first + warp_n >= p.n;
  for (int i = 0; i < kDown; ++i)
    for (int j = 0; j < kAcross; ++j)
      for (int q = 0; q < 4; ++q) sum[i][j][q] = 0;
  for (int step = 0; step < kStages - 1; ++step) copy_step(step);
  for (int step = 0; step < steps; ++step) {
    async_wait<kStages - 2>();
    __syncthreads();                // this step's tiles are there, and all have done with the previous one's
    copy_step(step + kStages - 1);  // into the previous step's place
    if (idle) continue;
    const MmaStage& stage = stages[step % kStages];
    for (int k = 0; k < kTileK; k += kFragmentK) {
      unsigned a[kDown][4], b[kAcross / 2][4];
      for (int i = 0; i < kDown; ++i)
        load_fragment<a_along_k(kLayout), false>(a[i], stage.a, warp_m + i * kFragmentM, k);
      for (int j = 0; j < kAcross / 2; ++j)
        load_fragment<b_along_k(kLayout), true>(b[j], stage.b, warp_n + j * 2 * kFragmentN, k);
      for (int i = 0; i < kDown; ++i) {
        for (int j = 0; j < kAcross; ++j) {
          const unsigned b_of_column[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
          mma_16x8x16(sum[i][j], a[i], b_of_column);
        }
      }
    }
  }
}

// f(m, the number of a piece's first row, its first or second pair of sums) for each row that the lane has some
// of.
template <class F>
__device__ __forceinline__ void for_rows_of_lane(const Tile& tile, F&& f) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  SY_UNROLL
  for (int i = 0; i < kDown; ++i) {
    SY_UNROLL
    for (int half = 0; half < 2; ++half)
      f(tile.m_first + first_row_of_warp() + i * kFragmentM + 8 * half + lane / 4, i, half);
  }
}

template <class T, class Out, GemmLayout kLayout, bool kPacks, bool kWritesPacks>
__global__ void __launch_bounds__(kMmaThreads, 2) mma_kernel(Product<T, Out> product) {
  const Tile tile = find_tile<kLayout>(product, static_cast<int>(blockIdx.x));
  if (tile.m_first >= tile.m_end) return;  // the whole block
  const Product<T, Out> p = of_expert<kLayout>(product, tile.expert);
  WarpSums sum;
  multiply_tile<kLayout, kPacks, Order::as_stored>(sum, p, tile);
  for_rows_of_lane(tile, [&](int m, int i, int half) {
    SY_UNROLL
    for (int j = 0; j < kAcross; j += 2) {
      const float left[2] = {sum[i][j][2 * half], sum[i][j][2 * half + 1]};
      const float right[2] = {sum[i][j + 1][2 * half], sum[i][j + 1][2 * half + 1]};
      write_quad<kWritesPacks>(p.c_MN[m], p.addend_MN[m],
                               tile.n_first + first_column_of_warp() + j * kFragmentN, p.n, left, right,
                               m < tile.m_end);
    }
  });
}

// The product of experts' gates and ups that activates them too: of the pieces of a thread's sums every other
// one holds gates, the next one the ups of the same columns. c_MN is gate_up_R2F with F a multiple of eight,
// and all rows are packs.
template <class T>
__global__ void __launch_bounds__(kMmaThreads, 2)
    gate_up_kernel(Product<T, T> product, Rows<T> act_RF, const float* weight_R) {
  const Tile tile = find_tile<GemmLayout::nt>(product, static_cast<int>(blockIdx.x));
  if (tile.m_first >= tile.m_end) return;  // the whole block
  const Product<T, T> p = of_expert<GemmLayout::nt>(product, tile.expert);
  WarpSums sum;
  multiply_tile<GemmLayout::nt, true, Order::halves>(sum, p, tile);
  const int width = p.n / 2;
  constexpr const T* none = nullptr;
  for_rows_of_lane(tile, [&](int m, int i, int half) {
    const bool valid = m < tile.m_end;
    const float weight = valid ? weight_R[m] : 0.0f;
    SY_UNROLL
    for (int j = 0; j < kAcross; j += 4) {
      float gate[2][2], up[2][2], act[2][2];  // of eight columns, and of the eight after them
      for (int side = 0; side < 2; ++side) {
        for (int q = 0; q < 2; ++q) {
          // Rounded first, to what the backward pass will read.
          gate[side][q] = to_float(from_float<T>(sum[i][j + 2 * side][2 * half + q]));
          up[side][q] = to_float(from_float<T>(sum[i][j + 2 * side + 1][2 * half + q]));
          act[side][q] = weight * (silu(gate[side][q]) * up[side][q]);
        }
      }
      const int f = (tile.n_first + first_column_of_warp() + j * kFragmentN) / 2;
      write_quad<true>(p.c_MN[m], none, f, width, gate[0], gate[1], valid);
      write_quad<true>(p.c_MN[m] + width, none, f, width, up[0], up[1], valid);
      write_quad<true>(act_RF[m], none, f, width, act[0], act[1], valid);
    }
  });
}

// The gradient of experts' activations and, from it, those of their gates and ups: c_MN is the gates' half of
// dgate_up_R2F, which may be gate_up_R2F. A row's gradient of its weight is a sum over its columns, of which
// each warp leaves its part in partial_RP. All rows are packs.
template <class T>
__global__ void __launch_bounds__(kMmaThreads, 2)
    down_backward_kernel(Product<T, T> product, Rows<const T> gate_up_R2F, const float* weight_R,
                         Rows<float> partial_RP) {
  const Tile tile = find_tile<GemmLayout::nn>(product, static_cast<int>(blockIdx.x));
  if (tile.m_first >= tile.m_end) return;  // the whole block
  const Product<T, T> p = of_expert<GemmLayout::nn>(product, tile.expert);
  WarpSums sum;
  multiply_tile<GemmLayout::nn, true, Order::as_stored>(sum, p, tile);
  const int first_column = tile.n_first + first_column_of_warp();
  for_rows_of_lane(tile, [&](int m, int i, int half) {
    const bool valid = m < tile.m_end;
    const float weight = valid ? weight_R[m] : 0.0f;
    T* const dgate = p.c_MN[m];
    const T* const gate = gate_up_R2F[m];
    // All of a row's loads are under way before its first store, which might be to the same place.
    constexpr int kFours = kAcross / 2;
    int f[kFours];
    float dout[kFours][4];
    Elements<T, 4> gates[kFours], ups[kFours];
    SY_UNROLL
    for (int j = 0; j < kFours; ++j) {
      const float left[2] = {sum[i][2 * j][2 * half], sum[i][2 * j][2 * half + 1]};
      const float right[2] = {sum[i][2 * j + 1][2 * half], sum[i][2 * j + 1][2 * half + 1]};
      f[j] = exchange_pairs(dout[j], first_column + 2 * j * kFragmentN, left, right);
      if (!valid || f[j] >= p.n) continue;
      gates[j] = load<4>(gate + f[j]);
      ups[j] = load<4>(gate + p.n + f[j]);
    }
    float dweight = 0;
    SY_UNROLL
    for (int j = 0; j < kFours; ++j) {
      if (!valid || f[j] >= p.n) continue;
      Elements<T, 4> dgates, dups;
      for (int q = 0; q < 4; ++q) {
        const SwiGluGradient d =
            swiglu_gradient(to_float(from_float<T>(dout[j][q])), to_float(gates[j].element[q]),
                            to_float(ups[j].element[q]), weight);
        dgates.element[q] = from_float<T>(d.gate);
        dups.element[q] = from_float<T>(d.up);
        dweight += d.weight;
      }
      store<4>(dgate + f[j], dgates);
      store<4>(dgate + p.n + f[j], dups);
    }
    for (int lanes = 1; lanes < 4; lanes *= 2) dweight += __shfl_xor_sync(kFullWarp, dweight, lanes);
    if (valid && threadIdx.x % 4 == 0 && first_column < p.n) partial_RP[m][first_column / kWarpTile] = dweight;
  });
}

// ---- float32 ----
// 256 threads with 8 x 8 outputs each, in four groups of 4 x 4 that are half a tile apart.

constexpr int kFloatThreads = 256, kFloatTileK = 16, kQuad = 4;
using FloatTile = float[kFloatTileK][kTile + kQuad];  // longer rows: fewer bank conflicts

struct FloatTiles {
  FloatTile a_KM, b_KN;
};

// Rows or columns [first, first + kTile) of an operand at [k_first, k_first + kFloatTileK) of its sum; zeros
// where it ends. Neighbouring threads read neighbours.
template <bool kAlongK>
__device__ __forceinline__ void copy_floats(FloatTile& to, const Rows<const float>& from, int first, int end,
                                            int k_first, int k_end) {
  for (int place = static_cast<int>(threadIdx.x); place < kFloatTileK * kTile; place += kFloatThreads) {
    const int k = kAlongK ? place % kFloatTileK : place / kTile;
    const int i = kAlongK ? place / kFloatTileK : place % kTile;
    const bool valid = first + i < end && k_first + k < k_end;
    to[k][i] = valid ? (kAlongK ? from[first + i][k_first + k] : from[k_first + k][first + i]) : 0.0f;
  }
}

template <GemmLayout kLayout>
__global__ void __launch_bounds__(kFloatThreads, 2) float_kernel(Product<float, float> product) {
  const Tile tile = find_tile<kLayout>(product, static_cast<int>(blockIdx.x));
  if (tile.m_first >= tile.m_end) return;  // the whole block
  const Product<float, float> p = of_expert<kLayout>(product, tile.expert);
  auto& shared = static_shared<FloatTiles>();
  const int row = static_cast<int>(threadIdx.x) / 16 * kQuad,
            column = static_cast<int>(threadIdx.x) % 16 * kQuad;
  float sum[2 * kQuad][2 * kQuad] = {};
  for (int k_first = tile.k_first; k_first < tile.k_end; k_first += kFloatTileK) {
    copy_floats<a_along_k(kLayout)>(shared.a_KM, p.a, tile.m_first, tile.m_end, k_first, tile.k_end);
    copy_floats<b_along_k(kLayout)>(shared.b_KN, p.b, tile.n_first, p.n, k_first, tile.k_end);
    __syncthreads();
    for (int k = 0; k < kFloatTileK; ++k) {
      float a[2 * kQuad], b[2 * kQuad];
      for (int half = 0; half < 2; ++half) {
        const auto a_quad = load<kQuad>(&shared.a_KM[k][row + half * kTile / 2]);
        const auto b_quad = load<kQuad>(&shared.b_KN[k][column + half * kTile / 2]);
        for (int i = 0; i < kQuad; ++i) {
          a[half * kQuad + i] = a_quad.element[i];
          b[half * kQuad + i] = b_quad.element[i];
        }
      }
      for (int i = 0; i < 2 * kQuad; ++i)
        for (int j = 0; j < 2 * kQuad; ++j) sum[i][j] += a[i] * b[j];
    }
    __syncthreads();  // before the tiles are overwritten
  }
  for (int i = 0; i < 2 * kQuad; ++i) {
    const int m = tile.m_first + row + i / kQuad * kTile / 2 + i % kQuad;
    if (m >= tile.m_end) continue;
    for (int j = 0; j < 2 * kQuad; ++j) {
      const int n = tile.n_first + column + j / kQuad * kTile / 2 + j % kQuad;
      if (n < p.n) write<1>(p.c_MN[m], p.addend_MN[m], n, {sum[i][j]});
    }
  }
}

}  // namespace

}  // namespace switchyard::ops::cuda
