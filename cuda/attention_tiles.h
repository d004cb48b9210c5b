// What the kernels of attention.cu, attention_mma.cu and attention_wgmma.cu share: which rows a block works on,
// and which keys and queries meet there.
//   The query heads that read one key-value head are rows of one matrix: row r is query r / group of the
//   sequence, head r % group of the group, R = seq_len * group rows. So a key tile is read once for the whole
//   group, a query of generation fills several rows of a tile, and dk and dv sum over the group in one block.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "core/context.h"
#include "divisor.h"
#include "elements.h"
#include "reduce.h"

namespace switchyard::ops::cuda {

struct AttentionSizes {
  int seq_len, n_past;  // queries of a sequence; keys of it before them
  int n_kv_heads;
  Divisor group;  // query heads that read one key-value head
  int width_N, width_M;
  float scale;
  __host__ __device__ int rows() const { return seq_len * group; }
  __host__ __device__ int keys() const { return n_past + seq_len; }
};

// What a block works on: blocks of one sequence and key-value head follow each other, so that those which run
// together find its keys in the L2 cache.
struct AttentionPlace {
  int seq, g, tile;
};
__device__ __forceinline__ AttentionPlace attention_place(const AttentionSizes& sizes, int n_tiles) {
  const int head = static_cast<int>(blockIdx.x) / n_tiles;
  return {head / sizes.n_kv_heads, head % sizes.n_kv_heads, static_cast<int>(blockIdx.x) % n_tiles};
}

template <class T>
struct QueryRows {
  T* data;
  std::int64_t stride;
  Divisor group;
  int width;
  __device__ __forceinline__ T* operator[](int r) const {
    return data + r / group * stride + r % group * width;
  }
};
template <class T>
__device__ __forceinline__ QueryRows<T> query_rows(Rows<T> matrix, const AttentionSizes& sizes,
                                                   const AttentionPlace& place, int width) {
  return {matrix[std::int64_t{place.seq} * sizes.seq_len] + place.g * sizes.group * width, matrix.stride,
          sizes.group, width};
}
template <class T>
__device__ __forceinline__ Rows<T> key_rows(Rows<T> matrix, const AttentionSizes& sizes,
                                            const AttentionPlace& place, int width) {
  return {matrix[std::int64_t{place.seq} * sizes.keys()] + place.g * width, matrix.stride};
}

// The keys [begin, end) that row r sees; none beyond the last row.
struct KeyRange {
  int begin, end;
  __device__ __forceinline__ bool has(int key) const { return key >= begin && key < end; }
};
__device__ __forceinline__ KeyRange keys_of_row(const int* kv_begin_S, const AttentionSizes& sizes, int r) {
  if (r >= sizes.rows()) return {0, 0};
  return {kv_begin_S[r / sizes.group], sizes.n_past + r / sizes.group + 1};
}

// The keys that rows row0 .. row0 + kRows - 1 see: each of them a part of `some`, and `all` of these at least.
// All lanes of a warp.
struct TileKeys {
  KeyRange some, all;
};
template <int kRows>
__device__ __forceinline__ TileKeys keys_of_tile(const int* kv_begin_S, const AttentionSizes& sizes, int row0) {
  const int last = std::min(row0 + kRows, sizes.rows()) - 1;
  const int first_query = row0 / sizes.group, last_query = last / sizes.group;
  int earliest = kv_begin_S[first_query], latest = earliest;
  for (int i = first_query + static_cast<int>(threadIdx.x) % kWarp; i <= last_query; i += kWarp) {
    earliest = std::min(earliest, kv_begin_S[i]);
    latest = std::max(latest, kv_begin_S[i]);
  }
  earliest = -reduce_warp<Max>(-earliest);
  latest = reduce_warp<Max>(latest);
  return {{earliest, sizes.n_past + last_query + 1}, {latest, sizes.n_past + first_query + 1}};
}

// The rows [begin, end) that may see a key of [key0, key_end), where no keys come before the queries; `late`:
// some of them begin behind key0. All threads of the block.
struct TileRows {
  int begin, end;
  bool late;
};
template <int kThreads>
__device__ __forceinline__ TileRows rows_of_keys(const int* kv_begin_S, const AttentionSizes& sizes, int key0,
                                                 int key_end) {
  const int first = key0 + static_cast<int>(threadIdx.x);
  int last = key0, latest = 0;
  for (int i = first; i < sizes.seq_len; i += kThreads) {
    if (kv_begin_S[i] < key_end) last = i;
  }
  last = reduce_block<Max, kThreads>(last);
  for (int i = first; i <= last; i += kThreads) latest = std::max(latest, kv_begin_S[i]);
  latest = reduce_block<Max, kThreads>(latest);
  return {key0 * sizes.group, (last + 1) * sizes.group, latest > key0};
}

// A call, its shapes checked. entropy_TH may be undefined; delta_TH is in place.
struct AttentionForward {
  Tensor out_THM, lse_TH, entropy_TH, q_THN, k_TGN, v_TGM, kv_begin_T;
  AttentionSizes sizes;
  std::int64_t n_seq;
};
struct AttentionBackward {
  Tensor dq_THN, dk_TGN, dv_TGM, dout_THM, delta_TH, lse_TH, q_THN, k_TGN, v_TGM, kv_begin_T;
  AttentionSizes sizes;
  std::int64_t n_seq;
};

inline Rows<float> entropy_rows(const AttentionForward& x) {
  return x.entropy_TH.defined() ? rows_of<float>(x.entropy_TH) : Rows<float>{nullptr, 0};
}

// The kernels of the tensor cores: whether they can serve a call, and the call.
bool attention_mma_serves(const AttentionForward& x);
bool attention_mma_serves(const AttentionBackward& x);
void attention_mma(const AttentionForward& x, Context& ctx);
void attention_mma(const AttentionBackward& x, Context& ctx);
// Those of Hopper's instructions. False, and nothing done, where the device is of another compute capability or
// there are none for these heads.
bool attention_wgmma(const AttentionForward& x, Context& ctx);
bool attention_wgmma(const AttentionBackward& x, Context& ctx);

}  // namespace switchyard::ops::cuda
