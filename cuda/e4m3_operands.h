// Operands of products in E4M3 (ops/linear.h: MatmulType::e4m3), made in scratch space: rows along the
// dimension that is summed over, each a whole number of tiles of 128 bytes with zeros behind its end, and
// scales beside them. What an expert has, and 128 rows of a gradient that is summed over rows, begins with a
// tile of its own.
//   R rows, C columns of what is rounded; E experts
#pragma once

#include <type_traits>

#include "gemm_tile.h"
#include "wgmma.h"

namespace switchyard::ops::cuda {

namespace {

constexpr int kE4m3Tile = 128;
static_assert(kE4m3Tile == kTile);  // rows of experts are cut alike in both
constexpr float kLargestE4m3 = 448;
constexpr int kRoundThreads = 256, kEight = 8;

// What values are divided by whose absolute values are `largest` at most, and the factor that does it. As the
// CPU has it (ops/cpu/e4m3.h), bit for bit.
struct E4m3Scale {
  float scale = 1, inverse = 1;
  __device__ __forceinline__ explicit E4m3Scale(float largest) {
    constexpr float kSmallestScaled = 0x1p-100f;
    if (largest == 0) return;
    largest = largest > kSmallestScaled ? largest : kSmallestScaled;
    scale = largest / kLargestE4m3;
    inverse = kLargestE4m3 / largest;
  }
};

__device__ __forceinline__ float larger(float largest, float x) {
  const float size = x < 0 ? -x : x;
  return size > largest ? size : largest;  // NaN is passed over
}

// So many values in so many bytes.
template <int kSize>
__device__ __forceinline__ Elements<std::uint8_t, kSize> as_e4m3(const float* value, float inverse) {
  Elements<std::uint8_t, kSize> bytes;
  SY_UNROLL
  for (int i = 0; i < kSize; i += 2) {
    const unsigned pair = e4m3_pair(value[i] * inverse, value[i + 1] * inverse);
    bytes.element[i] = static_cast<std::uint8_t>(pair & 0xff);
    bytes.element[i + 1] = static_cast<std::uint8_t>(pair >> 8);
  }
  return bytes;
}

// The first `valid` of eight values, the rest zero; kSize at once, of which all are valid or none.
template <int kSize, class T>
__device__ __forceinline__ void load_eight(float (&value)[kEight], const T* from, int valid) {
  SY_UNROLL
  for (int i = 0; i < kEight; i += kSize) {
    Elements<T, kSize> some{};
    if (i < valid) some = load<kSize>(from + i);
    for (int j = 0; j < kSize; ++j) value[i + j] = to_float(some.element[j]);
  }
}

// A scale for each 128 of a row. 16 lanes have a tile.
template <class T, int kSize>
__global__ void __launch_bounds__(kBlockThreads)
    e4m3_rows_kernel(Rows<std::uint8_t> to_RC, Rows<float> scale_tR, Rows<const T> from_RC, const int* n_rows,
                     std::int64_t most_rows, int columns, int tiles) {
  constexpr int kLanes = kE4m3Tile / kEight;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const std::int64_t number = index_of_thread() / kLanes, r = number / tiles;
  const int tile = static_cast<int>(number % tiles), first = tile * kE4m3Tile + lane * kEight;
  const bool valid = r < (n_rows != nullptr ? std::int64_t{*n_rows} : most_rows);
  float value[kEight] = {}, largest = 0;
  if (valid) load_eight<kSize>(value, from_RC[r] + first, columns - first);
  SY_UNROLL
  for (int i = 0; i < kEight; ++i) largest = larger(largest, value[i]);
  const E4m3Scale scale(reduce_lanes<Max>(largest, kLanes));
  if (!valid) return;
  store<kEight>(to_RC[r] + first, as_e4m3<kEight>(value, scale.inverse));
  if (lane == 0) scale_tR[tile][r] = scale.scale;
}

constexpr int kColumnsABlock = 64;
template <class T>
struct ColumnsShared {
  T value[kE4m3Tile][kColumnsABlock + 4 / sizeof(T)];  // longer rows: fewer bank conflicts
};
// A scale for each 128 rows of a column, which become 128 bytes of a row: tile number t the t-th of all
// experts' (offset_Ep null: of the matrix). Eight lanes have a tile.
template <class T, int kSize>
__global__ void __launch_bounds__(kRoundThreads)
    e4m3_columns_kernel(Rows<std::uint8_t> to_CR, Rows<float> scale_tC, Rows<const T> from_RC,
                        const int* offset_Ep, int n_experts, int rows, int columns) {
  constexpr int kLanes = 8, kEach = kE4m3Tile / kLanes, kColumnsATurn = kRoundThreads / kLanes;
  const int across = (columns + kColumnsABlock - 1) / kColumnsABlock;
  const int t = static_cast<int>(blockIdx.x) / across,
            first_column = static_cast<int>(blockIdx.x) % across * kColumnsABlock;
  Tile tile{t * kE4m3Tile, rows, 0, 0, 0, 0};
  if (offset_Ep != nullptr) tile = find_grouped_rows(offset_Ep, n_experts, t);
  if (tile.m_first >= tile.m_end) return;  // the whole block
  auto& shared = static_shared<ColumnsShared<T>>();
  constexpr int kPieces = kColumnsABlock / kSize;
  for (int i = static_cast<int>(threadIdx.x); i < kE4m3Tile * kPieces; i += kRoundThreads) {
    const int row = i / kPieces, column = i % kPieces * kSize;
    Elements<T, kSize> some{};
    if (tile.m_first + row < tile.m_end && first_column + column < columns)
      some = load<kSize>(from_RC[tile.m_first + row] + first_column + column);
    for (int j = 0; j < kSize; ++j) shared.value[row][column + j] = some.element[j];
  }
  __syncthreads();
  const int part = static_cast<int>(threadIdx.x) % kLanes;
  for (int c = static_cast<int>(threadIdx.x) / kLanes; c < kColumnsABlock; c += kColumnsATurn) {
    float value[kEach], largest = 0;
    SY_UNROLL
    for (int i = 0; i < kEach; ++i) {
      value[i] = to_float(shared.value[part * kEach + i][c]);
      largest = larger(largest, value[i]);
    }
    const E4m3Scale scale(reduce_lanes<Max>(largest, kLanes));
    const int column = first_column + c;
    if (column >= columns) continue;
    store<kEach>(to_CR[column] + std::int64_t{t} * kE4m3Tile + part * kEach,
                 as_e4m3<kEach>(value, scale.inverse));
    if (part == 0) scale_tC[t][column] = scale.scale;
  }
}

struct BlockShared {
  alignas(16) std::uint8_t byte_CR[kE4m3Tile][kE4m3Tile + 16];
};
// A scale for each block of 128 x 128 of a matrix, of which there may be several; transposed, if asked for.
//   scale[matrix][block of rows of `to`][block of its columns]
template <class T, int kSize, bool kTransposed>
__global__ void __launch_bounds__(kRoundThreads)
    e4m3_blocks_kernel(Rows<std::uint8_t> to, float* scale_of_block, Rows<const T> from_RC,
                       std::int64_t matrix_stride, int rows, int columns) {
  constexpr int kTurns = kEight, kRowsATurn = kE4m3Tile / kTurns, kLanes = kE4m3Tile / kEight;
  const int down = (rows + kE4m3Tile - 1) / kE4m3Tile, across = (columns + kE4m3Tile - 1) / kE4m3Tile;
  const int matrix = static_cast<int>(blockIdx.x) / (down * across),
            block = static_cast<int>(blockIdx.x) % (down * across);
  const int first_row = block / across * kE4m3Tile, first_column = block % across * kE4m3Tile;
  const int row = static_cast<int>(threadIdx.x) / kLanes,
            column = static_cast<int>(threadIdx.x) % kLanes * kEight;
  from_RC.data += matrix * matrix_stride;
  float value[kTurns][kEight] = {}, largest = 0;
  SY_UNROLL
  for (int turn = 0; turn < kTurns; ++turn) {
    const int r = first_row + turn * kRowsATurn + row;
    if (r < rows)
      load_eight<kSize>(value[turn], from_RC[r] + first_column + column, columns - first_column - column);
    SY_UNROLL
    for (int i = 0; i < kEight; ++i) largest = larger(largest, value[turn][i]);
  }
  const E4m3Scale scale(reduce_block<Max, kRoundThreads>(largest));
  if (threadIdx.x == 0) {
    const int place = kTransposed ? block % across * down + block / across : block;
    scale_of_block[std::int64_t{matrix} * down * across + place] = scale.scale;
  }
  if constexpr (!kTransposed) {
    SY_UNROLL
    for (int turn = 0; turn < kTurns; ++turn) {
      const int r = first_row + turn * kRowsATurn + row;
      if (r < rows)
        store<kEight>(to[std::int64_t{matrix} * rows + r] + first_column + column,
                      as_e4m3<kEight>(value[turn], scale.inverse));
    }
  } else {
    auto& shared = static_shared<BlockShared>();
    SY_UNROLL
    for (int turn = 0; turn < kTurns; ++turn) {
      const auto bytes = as_e4m3<kEight>(value[turn], scale.inverse);
      for (int i = 0; i < kEight; ++i) shared.byte_CR[column + i][turn * kRowsATurn + row] = bytes.element[i];
    }
    __syncthreads();
    constexpr int kPiece = 16, kPieces = kE4m3Tile / kPiece;
    for (int i = static_cast<int>(threadIdx.x); i < kE4m3Tile * kPieces; i += kRoundThreads) {
      const int c = i / kPieces, r = i % kPieces * kPiece;
      if (first_column + c < columns)
        store<kPiece>(to[std::int64_t{matrix} * columns + first_column + c] + first_row + r,
                      load<kPiece>(&shared.byte_CR[c][r]));
    }
  }
}

// ---- on the host ----

struct E4m3Operand {
  std::uint8_t* data;                  // [matrices, rows, tiles * 128]
  std::int64_t matrices, rows, tiles;  // tiles: of 128 bytes in a row
  float* scale;
  std::int64_t scale_stride;  // of scales for tiles of rows: from one tile to the next; of blocks: 0

  Rows<std::uint8_t> values() const { return {data, tiles * kE4m3Tile}; }
  Rows<float> scales() const { return {scale, scale_stride}; }
};

// Room for it. The scales of a tile in all rows are aligned for pairs.
E4m3Operand take_operand(std::int64_t matrices, std::int64_t rows, std::int64_t tiles, bool of_blocks,
                         Context& ctx) {
  SY_CHECK(matrices * rows < 0x7fffffff - kTile && tiles < 0x7fffffff / kE4m3Tile - 1,
           "E4M3: {} matrices of {} rows, {} tiles long", matrices, rows, tiles);
  const std::int64_t stride = of_blocks ? 0 : ceil_div(rows, kE4m3Tile) * kE4m3Tile;
  const std::int64_t n_scales = of_blocks ? matrices * ceil_div(rows, kE4m3Tile) * tiles : tiles * stride;
  const Tensor bytes = ctx.scratch.take({matrices * rows, tiles * kE4m3Tile / 4}, DType::i32);
  const Tensor scales = ctx.scratch.take({n_scales}, DType::f32);
  return {static_cast<std::uint8_t*>(bytes.raw()), matrices, rows, tiles, scales.as<float>(), stride};
}

// f.operator()<T, so many at once>() for a matrix of T.
template <class F>
void with_pieces(const Matrix& m, F&& f) {
  with_element(m.dtype, [&]<class T>() {
    if (m.packs()) return f.template operator()<T, kPack<T>>();
    if (m.is_of_pieces(2)) return f.template operator()<T, 2>();
    f.template operator()<T, 1>();
  });
}
template <class T>
Rows<const T> rows_to_round(const Matrix& m) {
  return {static_cast<const T*>(m.data), m.stride};
}

// Of the first *n_rows rows, if n_rows is not null.
E4m3Operand e4m3_along_rows(const char* op, const Matrix& m, const int* n_rows, Context& ctx) {
  const E4m3Operand to = take_operand(1, m.rows, ceil_div(m.columns, kE4m3Tile), false, ctx);
  with_pieces(m, [&]<class T, int kSize>() {
    launch(op, e4m3_rows_kernel<T, kSize>, one_thread_each(m.rows * to.tiles * (kE4m3Tile / kEight)), ctx,
           to.values(), to.scales(), rows_to_round<T>(m), n_rows, m.rows, m.columns, to.tiles);
  });
  return to;
}

E4m3Operand e4m3_along_columns(const char* op, const Matrix& m, const int* offset_Ep, std::int64_t n_experts,
                               Context& ctx) {
  std::int64_t tiles = ceil_div(m.rows, kE4m3Tile);
  if (offset_Ep != nullptr) tiles = m.rows / kE4m3Tile + std::min(m.rows, n_experts);
  const E4m3Operand to = take_operand(1, m.columns, tiles, false, ctx);
  with_pieces(m, [&]<class T, int kSize>() {
    launch(op, e4m3_columns_kernel<T, kSize>,
           {blocks(tiles * ceil_div(m.columns, kColumnsABlock)), kRoundThreads}, ctx, to.values(), to.scales(),
           rows_to_round<T>(m), offset_Ep, n_experts, m.rows, m.columns);
  });
  return to;
}

E4m3Operand e4m3_of_weight(const char* op, const Matrix& m, bool transposed, Context& ctx) {
  const std::int64_t along = transposed ? m.rows : m.columns, other = transposed ? m.columns : m.rows;
  const E4m3Operand to = take_operand(m.matrices, other, ceil_div(along, kE4m3Tile), true, ctx);
  with_pieces(m, [&]<class T, int kSize>() {
    const Launch shape{blocks(m.matrices * to.tiles * ceil_div(other, kE4m3Tile)), kRoundThreads};
    const auto start = [&](auto kernel) {
      launch(op, kernel, shape, ctx, to.values(), to.scale, rows_to_round<T>(m), m.matrix_stride, m.rows,
             m.columns);
    };
    transposed ? start(e4m3_blocks_kernel<T, kSize, true>) : start(e4m3_blocks_kernel<T, kSize, false>);
  });
  return to;
}

}  // namespace

}  // namespace switchyard::ops::cuda
