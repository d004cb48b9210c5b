// What the bf16 kernels of attention share: scores and sums of rows as mma.sync and wgmma leave them in the
// registers of a warp, the softmax over them, and the operands of a call.
#pragma once

#include <cmath>
#include <cstring>

#include "attention_tiles.h"
#include "elements.h"
#include "mma.h"
#include "reduce.h"

namespace switchyard::ops::cuda {

namespace {

constexpr float kLog2E = 1.4426950408889634f;

// This thread's part of a sum of 16 kTiles rows by kColumns: at[i][c][2 h + e] is at row 16 i + lane / 4 + 8 h,
// column 8 c + 2 (lane % 4) + e.
template <int kTiles, int kColumns>
struct Sums {
  float at[kTiles][kColumns / 8][4];
};
__device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int sum_row(int h) { return lane() / 4 + 8 * h; }
__device__ __forceinline__ int sum_column(int c) { return 8 * c + 2 * (lane() % 4); }

__device__ __forceinline__ unsigned bf16_pair(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  unsigned bits;
  memcpy(&bits, &pair, sizeof bits);
  return bits;
}

// The 4 lanes that share a row of a sum receive the reduction of their values.
template <class Op>
__device__ __forceinline__ float reduce_row(float value) {
  value = Op::of(value, __shfl_xor_sync(kFullWarp, value, 1));
  return Op::of(value, __shfl_xor_sync(kFullWarp, value, 2));
}

// Scores become minus infinity where the row does not see the key; seen and key0: of this warp's first.
template <int kTiles, int kKeys>
__device__ __forceinline__ void hide_unseen(Sums<kTiles, kKeys>& score, const KeyRange* seen, int key0) {
  SY_UNROLL
  for (int i = 0; i < kTiles; ++i) {
    SY_UNROLL
    for (int h = 0; h < 2; ++h) {
      const KeyRange keys = seen[16 * i + sum_row(h)];
      SY_UNROLL
      for (int c = 0; c < kKeys / 8; ++c) {
        SY_UNROLL
        for (int e = 0; e < 2; ++e) {
          if (!keys.has(key0 + sum_column(c) + e)) score.at[i][c][2 * h + e] = -INFINITY;
        }
      }
    }
  }
}

// Row 16 i + sum_row(h) of this warp's sums, times factor, to columns from x0 up to width of `to`.
template <int kTiles, int kColumns>
__device__ __forceinline__ void write_row(bf16* to, const Sums<kTiles, kColumns>& sum, int i, int h,
                                          float factor, int x0, int width) {
  SY_UNROLL
  for (int c = 0; c < kColumns / 8; ++c) {
    const int x = x0 + sum_column(c);
    if (x >= width) continue;
    store<2>(to + x, Elements<bf16, 2>{from_float<bf16>(sum.at[i][c][2 * h] * factor),
                                       from_float<bf16>(sum.at[i][c][2 * h + 1] * factor)});
  }
}

// The softmax's running maximum, and this thread's shares of its sum and of sum exp(s - max) s.
template <int kTiles>
struct OnlineSoftmax {
  float max[kTiles][2], sum[kTiles][2], product[kTiles][2];
  __device__ __forceinline__ OnlineSoftmax() {
    SY_UNROLL
    for (int i = 0; i < kTiles; ++i) {
      SY_UNROLL
      for (int h = 0; h < 2; ++h) {
        max[i][h] = -INFINITY;
        sum[i][h] = product[i][h] = 0;
      }
    }
  }
};

// What all that was summed before a new maximum is to be multiplied by, row by row.
template <int kTiles>
struct Rescale {
  float at[kTiles][2];
};
template <int kTiles, int kColumns>
__device__ __forceinline__ void multiply_rows(Sums<kTiles, kColumns>& sum, const Rescale<kTiles>& factor) {
  SY_UNROLL
  for (int i = 0; i < kTiles; ++i) {
    SY_UNROLL
    for (int c = 0; c < kColumns / 8; ++c) {
      SY_UNROLL
      for (int j = 0; j < 4; ++j) sum.at[i][c][j] *= factor.at[i][j / 2];
    }
  }
}

constexpr float kLeastScore = -3e38f;

// Scores become exp(s - maximum so far), in base 2 with `scale`.
template <bool kEntropy, int kTiles, int kKeys>
__device__ __forceinline__ Rescale<kTiles> weigh(Sums<kTiles, kKeys>& score, OnlineSoftmax<kTiles>& running,
                                                 float scale) {
  Rescale<kTiles> result;
  SY_UNROLL
  for (int i = 0; i < kTiles; ++i) {
    SY_UNROLL
    for (int h = 0; h < 2; ++h) {
      float tile_max = -INFINITY;
      SY_UNROLL
      for (int c = 0; c < kKeys / 8; ++c) {
        SY_UNROLL
        for (int e = 0; e < 2; ++e) tile_max = fmaxf(tile_max, score.at[i][c][2 * h + e]);
      }
      const float max = fmaxf(running.max[i][h], reduce_row<Max>(tile_max));
      const float shift = max == -INFINITY ? 0 : max * scale;  // nothing seen so far
      const float shrink = approximate_exp2(running.max[i][h] * scale - shift);
      float sum = 0, product = 0;
      SY_UNROLL
      for (int c = 0; c < kKeys / 8; ++c) {
        SY_UNROLL
        for (int e = 0; e < 2; ++e) {
          float& s = score.at[i][c][2 * h + e];
          const float p = approximate_exp2(s * scale - shift);
          if (kEntropy) product += p * fmaxf(s, kLeastScore);  // 0 where s is minus infinity
          sum += p;
          s = p;
        }
      }
      running.max[i][h] = max;
      running.sum[i][h] = running.sum[i][h] * shrink + sum;
      running.product[i][h] = running.product[i][h] * shrink + product;
      result.at[i][h] = shrink;
    }
  }
  return result;
}

// ---- a call's tensors ----

struct Operands {
  Rows<const bf16> q_THN, k_TGN, v_TGM;
  const int* kv_begin_T;
  AttentionSizes sizes;
};
struct Outputs {
  Rows<bf16> out_THM;
  Rows<float> lse_TH, entropy_TH;
};
struct Gradients {
  Rows<const bf16> dout_THM;
  Rows<const float> lse_TH, delta_TH;
};

// Of this warp's sums over keys, whose first row is row0: what is left to divide, and its logarithm.
template <bool kEntropy, int kTiles, int kM>
__device__ __forceinline__ void write_forward(const Outputs& to, const Sums<kTiles, kM>& out,
                                              const OnlineSoftmax<kTiles>& running, const AttentionSizes& sizes,
                                              const AttentionPlace& place, int row0) {
  const auto out_rows = query_rows(to.out_THM, sizes, place, sizes.width_M);
  SY_UNROLL
  for (int i = 0; i < kTiles; ++i) {
    SY_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int r = row0 + 16 * i + sum_row(h);
      const float sum = reduce_row<Sum>(running.sum[i][h]), product = reduce_row<Sum>(running.product[i][h]);
      if (r >= sizes.rows()) continue;
      write_row(out_rows[r], out, i, h, 1 / sum, 0, sizes.width_M);
      if (lane() % 4 != 0) continue;
      const float lse = running.max[i][h] * sizes.scale + logf(sum);
      *query_rows(to.lse_TH, sizes, place, 1)[r] = lse;
      // -sum P log P with log P = scale s - lse
      if (kEntropy) *query_rows(to.entropy_TH, sizes, place, 1)[r] = lse - product * sizes.scale / sum;
    }
  }
}

// ---- backward: dS = P (dP - delta), which is multiplied by the scale when all has been summed ----

// Of the rows of this warp's sums.
template <int kTiles>
struct RowsFacts {
  float lse[kTiles][2], delta[kTiles][2];  // lse in base 2
  __device__ __forceinline__ RowsFacts(const Gradients& gradients, const AttentionSizes& sizes,
                                       const AttentionPlace& place, int row0) {
    SY_UNROLL
    for (int i = 0; i < kTiles; ++i) {
      SY_UNROLL
      for (int h = 0; h < 2; ++h) {
        const int r = row0 + 16 * i + sum_row(h);
        const bool inside = r < sizes.rows();
        lse[i][h] = inside ? *query_rows(gradients.lse_TH, sizes, place, 1)[r] * kLog2E : INFINITY;
        delta[i][h] = inside ? *query_rows(gradients.delta_TH, sizes, place, 1)[r] : 0;
      }
    }
  }
};
// Scores become dS.
template <int kTiles, int kKeys>
__device__ __forceinline__ void differentiate(Sums<kTiles, kKeys>& score, const Sums<kTiles, kKeys>& dprob,
                                              const RowsFacts<kTiles>& rows, float scale) {
  SY_UNROLL
  for (int i = 0; i < kTiles; ++i) {
    SY_UNROLL
    for (int c = 0; c < kKeys / 8; ++c) {
      SY_UNROLL
      for (int j = 0; j < 4; ++j) {
        float& s = score.at[i][c][j];
        s = approximate_exp2(s * scale - rows.lse[i][j / 2]) * (dprob.at[i][c][j] - rows.delta[i][j / 2]);
      }
    }
  }
}
// Times scale, to the query rows from row0 on.
template <int kTiles, int kN>
__device__ __forceinline__ void write_query_rows(Rows<bf16> dq_THN, const Sums<kTiles, kN>& dq,
                                                 const AttentionSizes& sizes, const AttentionPlace& place,
                                                 int row0) {
  const auto rows = query_rows(dq_THN, sizes, place, sizes.width_N);
  SY_UNROLL
  for (int i = 0; i < kTiles; ++i) {
    SY_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int r = row0 + 16 * i + sum_row(h);
      if (r < sizes.rows()) write_row(rows[r], dq, i, h, sizes.scale, 0, sizes.width_N);
    }
  }
}

// Where scores are transposed, a sum's rows are keys and its columns query rows. What such a row brings along:
struct alignas(16) RowFacts {
  float lse, delta;  // lse in base 2
  KeyRange seen;
};
// r < 0: of a row that does not exist, whose P is 0.
__device__ __forceinline__ RowFacts facts_of_row(const Gradients& gradients, const int* kv_begin_S,
                                                 const AttentionSizes& sizes, const AttentionPlace& place,
                                                 int r) {
  if (r < 0) return {INFINITY, 0, {0, 0}};
  return {*query_rows(gradients.lse_TH, sizes, place, 1)[r] * kLog2E,
          *query_rows(gradients.delta_TH, sizes, place, 1)[r], keys_of_row(kv_begin_S, sizes, r)};
}
template <int kRows>
__device__ __forceinline__ void hide_unseen_columns(Sums<1, kRows>& score, const RowFacts* facts, int key0) {
  SY_UNROLL
  for (int c = 0; c < kRows / 8; ++c) {
    SY_UNROLL
    for (int j = 0; j < 4; ++j) {
      if (!facts[sum_column(c) + j % 2].seen.has(key0 + sum_row(j / 2))) score.at[0][c][j] = -INFINITY;
    }
  }
}
// Scores become P.
template <int kRows>
__device__ __forceinline__ void weigh_columns(Sums<1, kRows>& score, const RowFacts* facts, float scale) {
  SY_UNROLL
  for (int c = 0; c < kRows / 8; ++c) {
    SY_UNROLL
    for (int j = 0; j < 4; ++j) {
      float& s = score.at[0][c][j];
      s = approximate_exp2(s * scale - facts[sum_column(c) + j % 2].lse);
    }
  }
}
// dP becomes dS; prob(c, j): P where dP is at[0][c][j].
template <int kRows, class P>
__device__ __forceinline__ void differentiate_columns(Sums<1, kRows>& dprob, const P& prob,
                                                      const RowFacts* facts) {
  SY_UNROLL
  for (int c = 0; c < kRows / 8; ++c) {
    SY_UNROLL
    for (int j = 0; j < 4; ++j)
      dprob.at[0][c][j] = prob(c, j) * (dprob.at[0][c][j] - facts[sum_column(c) + j % 2].delta);
  }
}
// Times factor, to columns x0 up to width of the keys from key0 on.
template <int kColumns>
__device__ __forceinline__ void write_key_rows(Rows<bf16> to_TGX, const Sums<1, kColumns>& sum, float factor,
                                               const AttentionSizes& sizes, const AttentionPlace& place,
                                               int key0, int x0, int width) {
  const auto rows = key_rows(to_TGX, sizes, place, width);
  SY_UNROLL
  for (int h = 0; h < 2; ++h) {
    const int key = key0 + sum_row(h);
    if (key < sizes.keys()) write_row(rows[key], sum, 0, h, factor, x0, width);
  }
}

template <class Call>
Operands operands_of(const Call& x) {
  return {rows_of<const bf16>(x.q_THN), rows_of<const bf16>(x.k_TGN), rows_of<const bf16>(x.v_TGM),
          x.kv_begin_T.template as<std::int32_t>(), x.sizes};
}

Outputs outputs_of(const AttentionForward& x) {
  return {rows_of<bf16>(x.out_THM), rows_of<float>(x.lse_TH), entropy_rows(x)};
}
Gradients gradients_of(const AttentionBackward& x) {
  return {rows_of<const bf16>(x.dout_THM), rows_of<const float>(x.lse_TH), rows_of<const float>(x.delta_TH)};
}

}  // namespace

}  // namespace switchyard::ops::cuda
