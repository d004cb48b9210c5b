// The kernels of attention.cu for bf16 on tensor cores. Sums over a tile's rows or keys stay in registers: the
// scores of a warp's rows are, as they come out of one product, what the next takes in, rounded to bf16. Tiles
// reach shared memory by asynchronous copies while the ones before are multiplied.
//   Heads are padded with zeros in shared memory to the next size that there is a kernel for.
// Legend: as attention.cu; kN, kM padded widths of heads; a fragment is 16 rows by 16 columns in a warp's
// registers (mma.h), a sum of 16 x 8 floats in 4 registers of each lane.
#include "attention_softmax.h"
#include "attention_tiles.h"
#include "device.h"
#include "elements.h"
#include "launch.h"
#include "mma.h"

namespace switchyard::ops::cuda {

namespace {

constexpr int kLargestHead = 256;
// Behind a row in shared memory: the 8 rows that ldmatrix reads at once lie in different banks.
constexpr int kPad = kPack<bf16>;

template <int kRowsOf, int kWidth>
struct SharedRows {
  static constexpr int kStride = kWidth + kPad;
  alignas(16) bf16 element[kRowsOf * kStride];
  __device__ __forceinline__ bf16* row(int i) { return element + i * kStride; }
};

// Starts copying rows [row0, row0 + kRowsOf) of a head; zeros from n_rows and width on.
template <int kThreads, int kRowsOf, int kWidth, class R>
__device__ __forceinline__ void start_copy(SharedRows<kRowsOf, kWidth>& to, const R& rows, int row0, int n_rows,
                                           int width) {
  constexpr int kSize = kPack<bf16>, kLanes = kWidth % 64 == 0 ? 8 : 4;  // that copy a row side by side
  const int first_x = static_cast<int>(threadIdx.x) % kLanes * kSize;
  SY_UNROLL_BY(2)
  for (int row = static_cast<int>(threadIdx.x) / kLanes; row < kRowsOf; row += kThreads / kLanes) {
    const bool row_inside = row0 + row < n_rows;
    const bf16* const from = row_inside ? rows[row0 + row] : rows.data;
    SY_UNROLL
    for (int i = 0; i < kWidth; i += kLanes * kSize) {
      const int x = first_x + i;
      const bool inside = row_inside && x < width;
      async_copy_16(to.row(row) + x, inside ? from + x : from, inside ? 16 : 0);
    }
  }
}

// Two sums side by side += a b, where b comes from ldmatrix_x4: two fragments of 16 x 8.
__device__ __forceinline__ void mma_16x16x16(float (&left)[4], float (&right)[4], const unsigned (&a)[4],
                                             const unsigned (&b)[4]) {
  const unsigned b_left[2] = {b[0], b[1]}, b_right[2] = {b[2], b[3]};
  mma_16x8x16(left, a, b_left);
  mma_16x8x16(right, a, b_right);
}

// sum = a b^T: a has this warp's rows, b a row for each column; both [.., kDepth] in shared memory.
template <int kDepth, int kTiles, int kColumns>
__device__ __forceinline__ void multiply_transposed(Sums<kTiles, kColumns>& sum, const bf16* a, const bf16* b) {
  constexpr int kStride = kDepth + kPad;
  a += lane() % 16 * kStride + lane() / 16 * 8;
  b += (lane() % 8 + lane() / 16 * 8) * kStride + lane() / 8 % 2 * 8;
  sum = {};
  SY_UNROLL_BY(4)
  for (int x = 0; x < kDepth; x += 16) {
    unsigned a_x[kTiles][4];
    SY_UNROLL
    for (int i = 0; i < kTiles; ++i) ldmatrix_x4(a_x[i], a + 16 * i * kStride + x);
    SY_UNROLL
    for (int c = 0; c < kColumns / 8; c += 2) {
      unsigned b_x[4];
      ldmatrix_x4(b_x, b + 8 * c * kStride + x);
      SY_UNROLL
      for (int i = 0; i < kTiles; ++i) mma_16x16x16(sum.at[i][c], sum.at[i][c + 1], a_x[i], b_x);
    }
  }
}

// sum += a b: a as a product left it, rounded to bf16 here; b [kDepth, ..] in shared memory.
template <int kStride, int kDepth, int kTiles, int kColumns>
__device__ __forceinline__ void multiply_add(Sums<kTiles, kColumns>& sum, const Sums<kTiles, kDepth>& a,
                                             const bf16* b) {
  b += lane() % 16 * kStride + lane() / 16 * 8;
  SY_UNROLL
  for (int x = 0; x < kDepth / 8; x += 2) {
    unsigned a_x[kTiles][4];
    SY_UNROLL
    for (int i = 0; i < kTiles; ++i) {
      SY_UNROLL
      for (int j = 0; j < 4; ++j)
        a_x[i][j] = bf16_pair(a.at[i][x + j / 2][j % 2 * 2], a.at[i][x + j / 2][j % 2 * 2 + 1]);
    }
    SY_UNROLL
    for (int c = 0; c < kColumns / 8; c += 2) {
      unsigned b_x[4];
      ldmatrix_x4_transposed(b_x, b + 8 * x * kStride + 8 * c);
      SY_UNROLL
      for (int i = 0; i < kTiles; ++i) mma_16x16x16(sum.at[i][c], sum.at[i][c + 1], a_x[i], b_x);
    }
  }
}

// ---- forward ----
// Keys and values have one place each in shared memory: values arrive while scores are computed, the next keys
// while these are weighed and multiplied by the values.

template <int kN, int kM>
struct Forward {
  static constexpr int kRows = 128, kKeys = 64;
  static constexpr int kTiles = kM <= 128 ? 2 : 1;  // of 16 rows a warp, as many as its sums find registers for
  static constexpr int kThreads = kRows / (16 * kTiles) * kWarp;
  struct Shared {
    SharedRows<kRows, kN> q;
    SharedRows<kKeys, kN> k;
    SharedRows<kKeys, kM> v;
    KeyRange seen[kRows];
  };
};

template <int kN, int kM, bool kEntropy>
__global__ void __launch_bounds__(Forward<kN, kM>::kThreads)
    forward_kernel(Outputs to, Operands in, int n_tiles) {
  using F = Forward<kN, kM>;
  auto& shared = *static_cast<typename F::Shared*>(dynamic_shared());
  const AttentionSizes& sizes = in.sizes;
  AttentionPlace place = attention_place(sizes, n_tiles);
  place.tile = n_tiles - 1 - place.tile;  // those with most keys first
  const auto q = query_rows(in.q_THN, sizes, place, sizes.width_N);
  const auto k = key_rows(in.k_TGN, sizes, place, sizes.width_N);
  const auto v = key_rows(in.v_TGM, sizes, place, sizes.width_M);
  const int* const kv_begin_S = in.kv_begin_T + std::int64_t{place.seq} * sizes.seq_len;
  const int row0 = place.tile * F::kRows, n_rows = sizes.rows();
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * 16 * F::kTiles;
  const TileKeys keys = keys_of_tile<F::kRows>(kv_begin_S, sizes, row0);
  const float scale = sizes.scale * kLog2E;

  start_copy<F::kThreads>(shared.q, q, row0, n_rows, sizes.width_N);
  start_copy<F::kThreads>(shared.k, k, keys.some.begin, keys.some.end, sizes.width_N);
  async_commit();
  for (int row = static_cast<int>(threadIdx.x); row < F::kRows; row += F::kThreads)
    shared.seen[row] = keys_of_row(kv_begin_S, sizes, row0 + row);
  OnlineSoftmax<F::kTiles> running;
  Sums<F::kTiles, kM> out{};
  for (int key0 = keys.some.begin; key0 < keys.some.end; key0 += F::kKeys) {
    async_wait<0>();
    __syncthreads();  // the keys are here, and nobody reads the last values any more
    start_copy<F::kThreads>(shared.v, v, key0, keys.some.end, sizes.width_M);
    async_commit();
    Sums<F::kTiles, F::kKeys> s;
    multiply_transposed<kN>(s, shared.q.row(warp_row), shared.k.row(0));
    async_wait<0>();
    __syncthreads();  // the values are here, and nobody reads these keys any more
    if (key0 + F::kKeys < keys.some.end)
      start_copy<F::kThreads>(shared.k, k, key0 + F::kKeys, keys.some.end, sizes.width_N);
    async_commit();

    if (key0 < keys.all.begin || key0 + F::kKeys > keys.all.end) hide_unseen(s, shared.seen + warp_row, key0);
    multiply_rows(out, weigh<kEntropy>(s, running, scale));
    multiply_add<kM + kPad>(out, s, shared.v.row(0));
  }

  write_forward<kEntropy>(to, out, running, sizes, place, row0 + warp_row);
}

// ---- backward ----
// Tiles of 32 rows or keys come in turn to two places in shared memory: one is multiplied while the next
// arrives. dS = P (dP - delta) is multiplied by the scale when all has been summed.

template <int kN, int kM, int kRowsOf>
struct BackwardQ {
  static constexpr int kRows = kRowsOf, kKeys = 32;
  static constexpr int kTiles = kN <= 128 ? 2 : 1;  // as in Forward
  static constexpr int kThreads = kRows / (16 * kTiles) * kWarp;
  struct Shared {
    SharedRows<kRows, kN> q;
    SharedRows<kRows, kM> dout;
    SharedRows<kKeys, kN> k[2];
    SharedRows<kKeys, kM> v[2];
    KeyRange seen[kRows];
  };
};

template <int kN, int kM, int kRows>
__global__ void __launch_bounds__(BackwardQ<kN, kM, kRows>::kThreads)
    dq_kernel(Rows<bf16> dq_THN, Operands in, Gradients gradients, int n_tiles) {
  using B = BackwardQ<kN, kM, kRows>;
  auto& shared = *static_cast<typename B::Shared*>(dynamic_shared());
  const AttentionSizes& sizes = in.sizes;
  AttentionPlace place = attention_place(sizes, n_tiles);
  place.tile = n_tiles - 1 - place.tile;  // those with most keys first
  const auto q = query_rows(in.q_THN, sizes, place, sizes.width_N);
  const auto k = key_rows(in.k_TGN, sizes, place, sizes.width_N);
  const auto v = key_rows(in.v_TGM, sizes, place, sizes.width_M);
  const auto dout = query_rows(gradients.dout_THM, sizes, place, sizes.width_M);
  const int* const kv_begin_S = in.kv_begin_T + std::int64_t{place.seq} * sizes.seq_len;
  const int row0 = place.tile * B::kRows, n_rows = sizes.rows();
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * 16 * B::kTiles;
  const TileKeys keys = keys_of_tile<B::kRows>(kv_begin_S, sizes, row0);
  const float scale = sizes.scale * kLog2E;

  const auto start_keys = [&](int stage, int key0) {
    start_copy<B::kThreads>(shared.k[stage], k, key0, keys.some.end, sizes.width_N);
    start_copy<B::kThreads>(shared.v[stage], v, key0, keys.some.end, sizes.width_M);
    async_commit();
  };
  start_copy<B::kThreads>(shared.q, q, row0, n_rows, sizes.width_N);
  start_copy<B::kThreads>(shared.dout, dout, row0, n_rows, sizes.width_M);
  start_keys(0, keys.some.begin);
  for (int row = static_cast<int>(threadIdx.x); row < B::kRows; row += B::kThreads)
    shared.seen[row] = keys_of_row(kv_begin_S, sizes, row0 + row);
  const RowsFacts<B::kTiles> facts(gradients, sizes, place, row0 + warp_row);
  Sums<B::kTiles, kN> dq{};
  int stage = 0;
  for (int key0 = keys.some.begin; key0 < keys.some.end; key0 += B::kKeys, stage ^= 1) {
    async_wait<0>();
    __syncthreads();  // this stage is here, and nobody reads the other any more
    if (key0 + B::kKeys < keys.some.end) start_keys(stage ^ 1, key0 + B::kKeys);
    Sums<B::kTiles, B::kKeys> s, dprob;
    multiply_transposed<kN>(s, shared.q.row(warp_row), shared.k[stage].row(0));
    multiply_transposed<kM>(dprob, shared.dout.row(warp_row), shared.v[stage].row(0));
    if (key0 < keys.all.begin || key0 + B::kKeys > keys.all.end) hide_unseen(s, shared.seen + warp_row, key0);
    differentiate(s, dprob, facts, scale);
    multiply_add<kN + kPad>(dq, s, shared.k[stage].row(0));
  }
  write_query_rows(dq_THN, dq, sizes, place, row0 + warp_row);
}

template <int kN, int kM, int kRowsOf>
struct BackwardKv {
  static constexpr int kRows = kRowsOf, kThreads = 256;
  static constexpr int kBlocks = kN + kM <= 128 ? 2 : 1;  // on a multiprocessor, as registers allow
  static constexpr int kSplit =
      kN + kM <= 320 ? 1 : 2;  // warps that share 16 keys: each has a part of the columns
  static constexpr int kKeys = kThreads / kWarp / kSplit * 16;
  struct Shared {
    SharedRows<kKeys, kN> k;
    SharedRows<kKeys, kM> v;
    SharedRows<kRows, kN> q[2];
    SharedRows<kRows, kM> dout[2];
    RowFacts facts[2][kRows];
  };
};

// Scores are transposed here: a sum's rows are keys, its columns query rows.
template <int kN, int kM, int kRows>
__global__ void __launch_bounds__(BackwardKv<kN, kM, kRows>::kThreads, BackwardKv<kN, kM, kRows>::kBlocks)
    dkv_kernel(Rows<bf16> dk_TGN, Rows<bf16> dv_TGM, Operands in, Gradients gradients, int n_tiles) {
  using B = BackwardKv<kN, kM, kRows>;
  auto& shared = *static_cast<typename B::Shared*>(dynamic_shared());
  const AttentionSizes& sizes = in.sizes;
  const AttentionPlace place = attention_place(sizes, n_tiles);
  const auto q = query_rows(in.q_THN, sizes, place, sizes.width_N);
  const auto k = key_rows(in.k_TGN, sizes, place, sizes.width_N);
  const auto v = key_rows(in.v_TGM, sizes, place, sizes.width_M);
  const auto dout = query_rows(gradients.dout_THM, sizes, place, sizes.width_M);
  const int* const kv_begin_S = in.kv_begin_T + std::int64_t{place.seq} * sizes.seq_len;
  const int key0 = place.tile * B::kKeys, n_keys = sizes.keys();
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp;
  const int warp_key = warp / B::kSplit * 16, part = warp % B::kSplit;
  const TileRows rows = rows_of_keys<B::kThreads>(kv_begin_S, sizes, key0, key0 + B::kKeys);
  const float scale = sizes.scale * kLog2E;

  const auto start_rows = [&](int stage, int row0) {
    start_copy<B::kThreads>(shared.q[stage], q, row0, rows.end, sizes.width_N);
    start_copy<B::kThreads>(shared.dout[stage], dout, row0, rows.end, sizes.width_M);
    async_commit();
  };
  const auto facts_of = [&](int r) {
    return facts_of_row(gradients, kv_begin_S, sizes, place, thread < B::kRows && r < rows.end ? r : -1);
  };
  start_copy<B::kThreads>(shared.k, k, key0, n_keys, sizes.width_N);
  start_copy<B::kThreads>(shared.v, v, key0, n_keys, sizes.width_M);
  start_rows(0, rows.begin);
  if (thread < B::kRows) shared.facts[0][thread] = facts_of(rows.begin + thread);
  Sums<1, kN / B::kSplit> dk{};
  Sums<1, kM / B::kSplit> dv{};
  int stage = 0;
  for (int row0 = rows.begin; row0 < rows.end; row0 += B::kRows, stage ^= 1) {
    async_wait<0>();
    __syncthreads();  // this stage is here, and nobody reads the other any more
    if (row0 + B::kRows < rows.end) start_rows(stage ^ 1, row0 + B::kRows);
    const RowFacts next = facts_of(row0 + B::kRows + thread);
    Sums<1, B::kRows> s, dprob;
    multiply_transposed<kN>(s, shared.k.row(warp_key), shared.q[stage].row(0));
    multiply_transposed<kM>(dprob, shared.v.row(warp_key), shared.dout[stage].row(0));
    const RowFacts* const facts = shared.facts[stage];
    if (rows.late || row0 < (key0 + B::kKeys - 1) * sizes.group) hide_unseen_columns(s, facts, key0 + warp_key);
    weigh_columns(s, facts, scale);
    differentiate_columns(
        dprob, [&](int c, int j) { return s.at[0][c][j]; }, facts);
    multiply_add<kM + kPad>(dv, s, shared.dout[stage].row(0) + part * (kM / B::kSplit));
    multiply_add<kN + kPad>(dk, dprob, shared.q[stage].row(0) + part * (kN / B::kSplit));
    if (thread < B::kRows) shared.facts[stage ^ 1][thread] = next;
  }
  write_key_rows(dk_TGN, dk, sizes.scale, sizes, place, key0 + warp_key, part * (kN / B::kSplit),
                 sizes.width_N);
  write_key_rows(dv_TGM, dv, 1, sizes, place, key0 + warp_key, part * (kM / B::kSplit), sizes.width_M);
}

// Calls f.operator()<kN, kM>() with the smallest padded widths that there are kernels for.
template <class F>
void with_padded_heads(const AttentionSizes& sizes, F&& f) {
  const auto fits = [&](int width_N, int width_M) {
    return sizes.width_N <= width_N && sizes.width_M <= width_M;
  };
  if (fits(32, 32)) return f.template operator()<32, 32>();
  if (fits(64, 64)) return f.template operator()<64, 64>();
  if (fits(96, 96)) return f.template operator()<96, 96>();
  if (fits(128, 128)) return f.template operator()<128, 128>();
  if (fits(192, 128)) return f.template operator()<192, 128>();  // latent attention
  f.template operator()<256, 256>();
}

// Calls f.operator()<rows of a tile>(): kRows, or half of them where the device's shared memory has no room for
// kBytes. Compute capability 8.0 has 163 KiB, 8.6 and 8.9 have 99, 9.0 has 227.
template <int kRows, std::size_t kBytes, class F>
void with_rows(F&& f) {
  if constexpr (kBytes > 99 * 1024) {
    if (kBytes > shared_bytes_of_block()) return f.template operator()<kRows / 2>();
  }
  f.template operator()<kRows>();
}

bool heads_are_packs(const Tensor& x, int width) {
  return x.dtype() == DType::bf16 && rows_are_packs<bf16>(x) && width % kPack<bf16> == 0 &&
         width <= kLargestHead;
}

}  // namespace

bool attention_mma_serves(const AttentionForward& x) {
  const int N = x.sizes.width_N, M = x.sizes.width_M;
  return heads_are_packs(x.q_THN, N) && heads_are_packs(x.k_TGN, N) && heads_are_packs(x.v_TGM, M) &&
         heads_are_packs(x.out_THM, M);
}

bool attention_mma_serves(const AttentionBackward& x) {
  const int N = x.sizes.width_N, M = x.sizes.width_M;
  return heads_are_packs(x.q_THN, N) && heads_are_packs(x.k_TGN, N) && heads_are_packs(x.v_TGM, M) &&
         heads_are_packs(x.dout_THM, M) && heads_are_packs(x.dq_THN, N) && heads_are_packs(x.dk_TGN, N) &&
         heads_are_packs(x.dv_TGM, M);
}

void attention_mma(const AttentionForward& x, Context& ctx) {
  with_padded_heads(x.sizes, [&]<int kN, int kM>() {
    using F = Forward<kN, kM>;
    const std::int64_t n_tiles = ceil_div(x.sizes.rows(), F::kRows);
    const auto start = [&]<bool kEntropy>() {
      launch("attention_forward", forward_kernel<kN, kM, kEntropy>,
             {blocks(x.n_seq * x.sizes.n_kv_heads * n_tiles), F::kThreads, sizeof(typename F::Shared)}, ctx,
             outputs_of(x), operands_of(x), n_tiles);
    };
    if (x.entropy_TH.defined()) return start.template operator()<true>();
    start.template operator()<false>();
  });
}

void attention_mma(const AttentionBackward& x, Context& ctx) {
  const Operands in = operands_of(x);
  const Gradients gradients = gradients_of(x);
  const std::int64_t heads = x.n_seq * x.sizes.n_kv_heads;
  with_padded_heads(x.sizes, [&]<int kN, int kM>() {
    with_rows<128, sizeof(typename BackwardQ<kN, kM, 128>::Shared)>([&]<int kRows>() {
      using Q = BackwardQ<kN, kM, kRows>;
      const std::int64_t row_tiles = ceil_div(x.sizes.rows(), kRows);
      launch("attention_backward: dq", dq_kernel<kN, kM, kRows>,
             {blocks(heads * row_tiles), Q::kThreads, sizeof(typename Q::Shared)}, ctx, rows_of<bf16>(x.dq_THN),
             in, gradients, row_tiles);
    });
    with_rows<32, sizeof(typename BackwardKv<kN, kM, 32>::Shared)>([&]<int kRows>() {
      using Kv = BackwardKv<kN, kM, kRows>;
      const std::int64_t key_tiles = ceil_div(x.sizes.keys(), Kv::kKeys);
      launch("attention_backward: dk, dv", dkv_kernel<kN, kM, kRows>,
             {blocks(heads * key_tiles), Kv::kThreads, sizeof(typename Kv::Shared)}, ctx,
             rows_of<bf16>(x.dk_TGN), rows_of<bf16>(x.dv_TGM), in, gradients, key_tiles);
    });
  });
}

}  // namespace switchyard::ops::cuda
