// How sums of products of warpgroups (wgmma.h) leave for global memory: a warp puts them down in shared memory,
// 16 rows of 128 bytes at a time, from where bulk copies take them while the next tile is multiplied. Two such
// slices a warp are under way at a time.
#pragma once

#include "elements.h"
#include "wgmma.h"

namespace switchyard::ops::cuda {

constexpr int kSliceRows = 16;  // of a warp's sums
template <class Out>
constexpr int kSliceColumns = kBoxBytes / static_cast<int>(sizeof(Out));
struct Slices {
  unsigned char bytes[2][kSliceRows * kBoxBytes];
};
static_assert(sizeof(Slices) / 2 % kSwizzleSpan == 0);

// The 16-byte piece `piece` of a slice's row.
__device__ __forceinline__ unsigned char* piece_of_slice(unsigned char* slice, int row, int piece) {
  return slice + row * kBoxBytes + (piece ^ row % 8) * 16;
}

// Puts down a slice of bf16: pair(i) are what becomes of the sums i and i + 1 of a thread, in the order of
// wgmma(). No two lanes that store at one time meet in a bank.
template <class F>
__device__ __forceinline__ void put_pairs(unsigned char* slice, F&& pair) {
  const int lane = static_cast<int>(threadIdx.x) % 32, row = lane / 4, p = lane % 4;
  SY_UNROLL
  for (int half = 0; half < 2; ++half) {
    SY_UNROLL
    for (int j = 0; j < 8; ++j) {
      auto* const to = reinterpret_cast<bf16*>(piece_of_slice(slice, row, j)) + 2 * p;
      store<2>(to + half * (8 * kBoxBytes / 2), pair(4 * j + 2 * half));
    }
  }
}

// Puts down the sums that `sum` begins with, in the order of wgmma(), as a slice. No two lanes that store at
// one time meet in a bank.
template <class Out>
__device__ __forceinline__ void put_slice(unsigned char* slice, const float* sum) {
  const int lane = static_cast<int>(threadIdx.x) % 32, row = lane / 4, p = lane % 4;
  if constexpr (sizeof(Out) == sizeof(float)) {
    // A row's eight columns are two pieces of eight. Sixteen lanes store at one time, of four rows, and the
    // swizzle parts rows 0 and 1 from rows 2 and 3 alone: odd rows store other columns at that time.
    const bool odd = row % 2 != 0;
    SY_UNROLL
    for (int half = 0; half < 2; ++half) {
      SY_UNROLL
      for (int j = 0; j < 4; ++j) {
        const float* const even = sum + 4 * j + 2 * half;
        const float* const other = sum + 4 * (j ^ 2) + 2 * half;
        const Elements<float, 2> pair{{odd ? other[0] : even[0], odd ? other[1] : even[1]}};
        unsigned char* const to = piece_of_slice(slice, row, 2 * j ^ (odd ? 4 : 0) ^ p / 2);
        store<2>(reinterpret_cast<float*>(to) + p % 2 * 2 + half * (8 * kBoxBytes / 4), pair);
      }
    }
  } else {
    put_pairs(slice, [&](int i) {
      return Elements<Out, 2>{{from_float<Out>(sum[i]), from_float<Out>(sum[i + 1])}};
    });
  }
}

// Where a slice goes: rows [row, row_end) of c and of the map, of which it has 16 or, where other rows follow,
// fewer. A tile's first slice is number 0; all of a warp come.
template <class Out>
struct SliceTarget {
  const TensorMap& map;
  int matrix, row, row_end;
  bool ends_there;  // whether rows from row_end on are outside the matrix
  Rows<Out> c_MN;   // the matrix
  int n;            // its columns
  bool add;         // of float32 alone
};

// The slice that is to be written as number `number` of a tile: what it held has been read. None is left out
// before the tile's last one.
__device__ __forceinline__ unsigned char* free_slice(Slices& slices, int number) {
  // Of the last tile a warp may have left an odd number.
  if (threadIdx.x % 32 == 0) {
    if (number == 0) bulk_wait_read<0>();
    if (number > 1) bulk_wait_read<1>();
  }
  __syncwarp();
  return slices.bytes[number % 2];
}
template <class Out>
__device__ __forceinline__ void send_slice(unsigned char* slice, const SliceTarget<Out>& to, int column) {
  constexpr bool kAdds = sizeof(Out) == sizeof(float);
  if (to.row + kSliceRows <= to.row_end || to.ends_there) {
    fence_proxy_async();
    __syncwarp();
    if (threadIdx.x % 32 != 0) return;
    if (kAdds && to.add) {
      bulk_add(to.map, to.matrix, to.row, column, slice);
    } else {
      bulk_store(to.map, to.matrix, to.row, column, slice);
    }
    bulk_commit();
    return;
  }
  // By hand, the next rows being others'.
  __syncwarp();
  constexpr int kPieces = kBoxBytes / 16, kTurns = kSliceRows * kPieces / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32, piece = lane % kPieces;
  const int n = column + piece * kPack<Out>;
  SY_UNROLL
  for (int i = 0; i < kTurns; ++i) {
    const int row = lane / kPieces + i * (32 / kPieces);
    if (to.row + row >= to.row_end || n >= to.n) continue;
    Out* const place = to.c_MN[to.row + row] + n;
    auto result = load<kPack<Out>>(reinterpret_cast<const Out*>(piece_of_slice(slice, row, piece)));
    if constexpr (kAdds) {
      if (to.add) {
        const auto before = load<kPack<Out>>(place);
        SY_UNROLL
        for (int q = 0; q < kPack<Out>; ++q) result.element[q] += before.element[q];
      }
    }
    store<kPack<Out>>(place, result);
  }
}

// All sums of a warp, of columns from `column` on.
template <class Out, int kSums>
__device__ __forceinline__ void send_sums(const float (&sum)[kSums], const SliceTarget<Out>& to, Slices& slices,
                                          int column) {
  SY_UNROLL
  for (int i = 0; i < 2 * kSums / kSliceColumns<Out>; ++i) {
    if (column + i * kSliceColumns<Out> >= to.n) break;
    unsigned char* const slice = free_slice(slices, i);
    put_slice<Out>(slice, sum + i * (kSliceColumns<Out> / 2));
    send_slice(slice, to, column + i * kSliceColumns<Out>);
  }
}

}  // namespace switchyard::ops::cuda
