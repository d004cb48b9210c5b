// Attention by Hopper's own instructions: two warpgroups multiply, each 64 rows (or keys) of a block's tile,
// from shared memory, and what the softmax leaves in registers is the next product's left operand as it is. A
// third, producer warpgroup fills a ring of shared-memory stages, so consumers do no address arithmetic.
//   - Output and dq: a block has 128 query rows. The scores of the next keys are multiplied while those of the
//     keys before are weighed and added up (as FlashAttention-3 does, arXiv 2407.08608, section 3.2).
//   - dk and dv: a block has 128 keys. The query rows of a tile are a box of {columns, heads of the group,
//     queries}, one bulk copy for each 64 columns, where the group divides the tile's rows. Otherwise a whole
//     warpgroup copies them, 16 bytes a thread, and hands a tile over as soon as it has landed, whatever the
//     consumers do: what it takes to start the next one falls into their time.
// Legend: as attention.cu. Compiled for sm_90a alone (CMakeLists.txt).
#include "attention_softmax.h"
#include "attention_tiles.h"
#include "device.h"
#include "launch.h"
#include "wgmma.h"

namespace switchyard::ops::cuda {

namespace {

constexpr int kGroupRows = 64, kGroups = 2, kTileRows = kGroups * kGroupRows;
constexpr int kGroupThreads = 128, kConsumers = kGroups * kGroupThreads, kConsumerWarps = kConsumers / kWarp;
constexpr int kThreads = kConsumers + kGroupThreads;
// Registers of a thread that begins bulk copies, of one that copies piece by piece, and of those that multiply
// meanwhile; all start with 168.
constexpr int kBulkRegisters = 24, kBulkSumRegisters = 240, kPieceRegisters = 40, kPieceSumRegisters = 232;
static_assert(kBulkRegisters + kGroups * kBulkSumRegisters == (1 + kGroups) * 168);
static_assert(kPieceRegisters + kGroups * kPieceSumRegisters == (1 + kGroups) * 168);
constexpr int kStages = 2, kPieceStages = 3;
constexpr int kLineBytes = 2 * kBoxColumns, kInstructionK = 16, kChunk = kPack<bf16>;

// A tile as products read it: blocks of 64 columns, in each a line for each row.
template <int kRowsOf, int kWidth>
struct Lines {
  bf16 element[kRowsOf * kWidth];
  static_assert(kRowsOf % 8 == 0 && kWidth % kBoxColumns == 0);

  // The 16-byte piece `chunk` of a row.
  __device__ __forceinline__ bf16* place(int row, int chunk) {
    constexpr int kChunks = kBoxColumns / kChunk;
    return element + chunk / kChunks * (kRowsOf * kBoxColumns) + row * kBoxColumns +
           (chunk % kChunks ^ row % kChunks) * kChunk;
  }
  // As an operand that lies along K: rows from `first` on, columns from x on are its K.
  __device__ __forceinline__ std::uint64_t along(int first, int x) const {
    return moved(operand_at(element + first * kBoxColumns, 16, 8 * kLineBytes),
                 x / kBoxColumns * (kRowsOf * kLineBytes) + x % kBoxColumns * 2);
  }
  // As one that lies across: rows from `first` on are its K.
  __device__ __forceinline__ std::uint64_t across(int first) const {
    return moved(operand_at(element, kRowsOf * kLineBytes, 8 * kLineBytes), first * kLineBytes);
  }
};

// Starts copying rows [row0, row0 + kCount) to the lines from `first` on, by a warpgroup; zeros from n_rows on.
template <int kCount, int kRowsOf, int kWidth, class R>
__device__ __forceinline__ void start_lines(Lines<kRowsOf, kWidth>& to, int first, const R& rows, int row0,
                                            int n_rows) {
  constexpr int kChunks = kWidth / kChunk;
  for (int i = static_cast<int>(threadIdx.x) % kGroupThreads; i < kCount * kChunks; i += kGroupThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    const bool inside = row0 + row < n_rows;
    const bf16* const from = inside ? rows[row0 + row] + chunk * kChunk : rows.data;
    async_copy_16(to.place(first + row, chunk), from, inside ? 16 : 0);
  }
}

// Begins to copy the tile from row `row` and column `column` of a matrix on. One thread.
template <int kRowsOf, int kWidth>
__device__ __forceinline__ void bulk_copy_lines(Lines<kRowsOf, kWidth>& to, const TensorMap& map, Barrier& full,
                                                int matrix, int row, int column) {
  for (int x = 0; x < kWidth; x += kBoxColumns)
    bulk_copy(to.element + x * kRowsOf, map, full, matrix, row, column + x);
}

// The same of the tile whose first row is head `head` of query `query`, of a map with boxes of kRowsOf heads.
template <int kRowsOf, int kWidth>
__device__ __forceinline__ void bulk_copy_heads(Lines<kRowsOf, kWidth>& to, const TensorMap& map, Barrier& full,
                                                int seq, int query, int head) {
  for (int x = 0; x < kWidth; x += kBoxColumns)
    bulk_copy(to.element + x * kRowsOf, map, full, seq, query, head, x);
}

// A sum's registers, as products name them.
template <int kColumns>
__device__ __forceinline__ float (&registers_of(Sums<1, kColumns>& sum))[kColumns / 2] {
  static_assert(sizeof sum == sizeof(float[kColumns / 2]));
  return reinterpret_cast<float(&)[kColumns / 2]>(sum.at);
}
// A sum rounded to bf16, as the left operand of products whose K its columns are.
template <int kColumns>
struct LeftOperand {
  unsigned at[kColumns / kInstructionK][4];
  __device__ __forceinline__ void set(const Sums<1, kColumns>& sum) {
    SY_UNROLL
    for (int k = 0; k < kColumns / kInstructionK; ++k) {
      SY_UNROLL
      for (int i = 0; i < 4; ++i)
        at[k][i] = bf16_pair(sum.at[0][2 * k + i / 2][i % 2 * 2], sum.at[0][2 * k + i / 2][i % 2 * 2 + 1]);
    }
  }
  // What sum.at[0][c][j] was rounded to.
  __device__ __forceinline__ float value(int c, int j) const {
    const unsigned pair = at[c / 2][c % 2 * 2 + j / 2];
    return __uint_as_float(j % 2 == 0 ? pair << 16 : pair & 0xffff0000u);
  }
};

// The warp's 16 rows of a matrix from row0 on, as the left operand of products over all their columns; zeros
// from n_rows on.
template <int kWidth, class R>
__device__ __forceinline__ void load_rows(LeftOperand<kWidth>& to, const R& rows, int row0, int n_rows) {
  SY_UNROLL
  for (int h = 0; h < 2; ++h) {
    const int row = row0 + sum_row(h);
    const bool inside = row < n_rows;
    const bf16* const from = (inside ? rows[row] : rows.data) + sum_column(0);
    SY_UNROLL
    for (int k = 0; k < kWidth / kInstructionK; ++k) {
      SY_UNROLL
      for (int i = 0; i < 2; ++i) {
        unsigned pair = 0;
        if (inside) memcpy(&pair, __builtin_assume_aligned(from + k * kInstructionK + 8 * i, 4), sizeof pair);
        to.at[k][2 * i + h] = pair;
      }
    }
  }
}

// Begins sum = a b^T: a's rows from a_first on, b a row for each column.
template <int kColumns, int kRowsOfA, int kDepth>
__device__ __forceinline__ void begin_transposed(Sums<1, kColumns>& sum, const Lines<kRowsOfA, kDepth>& a,
                                                 int a_first, const Lines<kColumns, kDepth>& b) {
  SY_UNROLL
  for (int x = 0; x < kDepth; x += kInstructionK)
    wgmma<false, false>(registers_of(sum), a.along(a_first, x), b.along(0, x), x > 0);
  wgmma_commit();
}
template <int kColumns, int kDepth>
__device__ __forceinline__ void begin_transposed(Sums<1, kColumns>& sum, const LeftOperand<kDepth>& a,
                                                 const Lines<kColumns, kDepth>& b) {
  SY_UNROLL
  for (int x = 0; x < kDepth; x += kInstructionK)
    wgmma<false>(registers_of(sum), a.at[x / kInstructionK], b.along(0, x), x > 0);
  wgmma_commit();
}
// Begins sum += a b.
template <int kColumns, int kDepth>
__device__ __forceinline__ void begin_add(Sums<1, kColumns>& sum, const LeftOperand<kDepth>& a,
                                          const Lines<kDepth, kColumns>& b) {
  SY_UNROLL
  for (int k = 0; k < kDepth / kInstructionK; ++k)
    wgmma<true>(registers_of(sum), a.at[k], b.across(k * kInstructionK), true);
  wgmma_commit();
}

// This warp has read the tile.
__device__ __forceinline__ void release(Barrier& empty) {
  __syncwarp();
  if (lane() == 0) barrier_arrive(empty);
}
// A warpgroup's threads see what they have copied: threads of this group alone read it.
__device__ __forceinline__ void wait_for_own_copies(int group) {
  async_wait<0>();
  fence_proxy_async();
  sync_some(1 + group, kGroupThreads);
}

// The query rows of a block, and the keys that they see.
struct RowTile {
  AttentionPlace place;
  const int* kv_begin_S;
  int row0;
  TileKeys keys;
  __device__ __forceinline__ RowTile(const Operands& in, int n_tiles)
      : place(attention_place(in.sizes, n_tiles)),
        kv_begin_S(in.kv_begin_T + std::int64_t{place.seq} * in.sizes.seq_len),
        row0((n_tiles - 1 - place.tile) * kTileRows),  // those with most keys first
        keys(keys_of_tile<kTileRows>(kv_begin_S, in.sizes, row0)) {}
};
// By a warpgroup, of its rows, the first of which is group_row.
__device__ __forceinline__ void set_seen(KeyRange* seen, const RowTile& tile, const AttentionSizes& sizes,
                                         int group_row) {
  const int row = group_row + static_cast<int>(threadIdx.x) % kGroupThreads;
  if (row < group_row + kGroupRows) seen[row] = keys_of_row(tile.kv_begin_S, sizes, tile.row0 + row);
}

// ---- forward ----

template <int kN, int kM>
struct Forward {
  static constexpr int kKeys = kN > 192 ? 64 : 128;  // as shared memory and registers allow
  struct Shared {
    Lines<kTileRows, kN> q;
    Lines<kKeys, kN> k[kStages];
    Lines<kKeys, kM> v[kStages];
    KeyRange seen[kTileRows];
    Barrier k_full[kStages], v_full[kStages], k_empty[kStages], v_empty[kStages];
  };
};

template <int kN, int kM>
__global__ void __launch_bounds__(kThreads, 1)
    forward_kernel(const __grid_constant__ TensorMap k_map, const __grid_constant__ TensorMap v_map, Outputs to,
                   Operands in, int n_tiles) {
  using F = Forward<kN, kM>;
  auto& shared = swizzled_shared<typename F::Shared>();
  const AttentionSizes& sizes = in.sizes;
  const RowTile tile(in, n_tiles);
  const AttentionPlace& place = tile.place;
  const TileKeys& keys = tile.keys;
  const int row0 = tile.row0;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  if (threadIdx.x == 0) {
    prefetch_map(k_map);
    prefetch_map(v_map);
    for (int stage = 0; stage < kStages; ++stage) {
      for (Barrier* full : {&shared.k_full[stage], &shared.v_full[stage]}) barrier_init(*full, 1);
      for (Barrier* empty : {&shared.k_empty[stage], &shared.v_empty[stage]})
        barrier_init(*empty, kConsumerWarps);
    }
    fence_proxy_async();
  }
  __syncthreads();

  if (warp >= kConsumerWarps) {
    release_registers<kBulkRegisters>();
    if (warp > kConsumerWarps || lane() > 0) return;
    Ring<kStages> ring;
    for (int key0 = keys.some.begin; key0 < keys.some.end; key0 += F::kKeys) {
      const auto copy = [&](auto& lines, const TensorMap& map, Barrier& full, Barrier& empty, int width) {
        barrier_wait(empty, ring.parity ^ 1);
        barrier_arrive_expecting(full, sizeof lines);
        bulk_copy_lines(lines, map, full, place.seq, key0, place.g * width);
      };
      copy(shared.k[ring.stage], k_map, shared.k_full[ring.stage], shared.k_empty[ring.stage], kN);
      copy(shared.v[ring.stage], v_map, shared.v_full[ring.stage], shared.v_empty[ring.stage], kM);
      ring.advance();
    }
    return;
  }

  claim_registers<kBulkSumRegisters>();
  const int group = warp / (kGroupThreads / kWarp), group_row = group * kGroupRows;
  const int warp_row = warp * 16;
  start_lines<kGroupRows>(shared.q, group_row, query_rows(in.q_THN, sizes, place, kN), row0 + group_row,
                          sizes.rows());
  async_commit();
  set_seen(shared.seen, tile, sizes, group_row);
  wait_for_own_copies(group);

  const float scale = sizes.scale * kLog2E;
  OnlineSoftmax<1> running;
  Sums<1, kM> out{};
  Sums<1, F::kKeys> score;
  LeftOperand<F::kKeys> prob;
  const auto weigh_scores = [&](int key0) {
    if (key0 < keys.all.begin || key0 + F::kKeys > keys.all.end)
      hide_unseen(score, shared.seen + warp_row, key0);
    return weigh<false>(score, running, scale);
  };
  Ring<kStages> ring;  // of the keys whose scores are next; their values follow one turn later
  barrier_wait(shared.k_full[ring.stage], ring.parity);
  wgmma_fence();
  begin_transposed(score, shared.q, group_row, shared.k[ring.stage]);
  wgmma_wait<0>();
  release(shared.k_empty[ring.stage]);
  weigh_scores(keys.some.begin);
  prob.set(score);
  Ring<kStages> values = ring;
  ring.advance();
  for (int key0 = keys.some.begin + F::kKeys; key0 < keys.some.end; key0 += F::kKeys) {
    barrier_wait(shared.k_full[ring.stage], ring.parity);
    barrier_wait(shared.v_full[values.stage], values.parity);
    wgmma_fence();
    begin_transposed(score, shared.q, group_row, shared.k[ring.stage]);
    begin_add(out, prob, shared.v[values.stage]);
    wgmma_wait<1>();  // the scores are there, the values are being added
    release(shared.k_empty[ring.stage]);
    const Rescale<1> shrink = weigh_scores(key0);
    wgmma_wait<0>();
    release(shared.v_empty[values.stage]);
    multiply_rows(out, shrink);
    prob.set(score);
    values = ring;
    ring.advance();
  }
  barrier_wait(shared.v_full[values.stage], values.parity);
  wgmma_fence();
  begin_add(out, prob, shared.v[values.stage]);
  wgmma_wait<0>();
  write_forward<false>(to, out, running, sizes, place, row0 + warp_row);
}

// ---- backward: dq ----

// A block's query rows and output gradients: in registers where there is room, so that products read one
// operand from shared memory and not two, which with tiles of 64 keys is all that it gives (4 KiB in 32
// cycles).
template <int kN, int kM>
struct RowsInRegisters {
  struct Shared {};
  LeftOperand<kN> q;
  LeftOperand<kM> dout;
  template <class R>
  __device__ __forceinline__ void load(Shared&, const R& q_rows, const R& dout_rows, int row0, int n_rows,
                                       int group) {
    const int warp_row = row0 + group * kGroupRows + static_cast<int>(threadIdx.x) / kWarp % 4 * 16;
    load_rows(q, q_rows, warp_row, n_rows);
    load_rows(dout, dout_rows, warp_row, n_rows);
  }
  template <int kKeys>
  __device__ __forceinline__ void begin(Sums<1, kKeys>& score, Sums<1, kKeys>& dprob, const Lines<kKeys, kN>& k,
                                        const Lines<kKeys, kM>& v, const Shared&, int) const {
    begin_transposed(score, q, k);
    begin_transposed(dprob, dout, v);
  }
};
template <int kN, int kM>
struct RowsInLines {
  struct Shared {
    Lines<kTileRows, kN> q;
    Lines<kTileRows, kM> dout;
  };
  template <class R>
  __device__ __forceinline__ void load(Shared& shared, const R& q_rows, const R& dout_rows, int row0,
                                       int n_rows, int group) {
    const int group_row = group * kGroupRows;
    start_lines<kGroupRows>(shared.q, group_row, q_rows, row0 + group_row, n_rows);
    start_lines<kGroupRows>(shared.dout, group_row, dout_rows, row0 + group_row, n_rows);
    async_commit();
  }
  template <int kKeys>
  __device__ __forceinline__ void begin(Sums<1, kKeys>& score, Sums<1, kKeys>& dprob, const Lines<kKeys, kN>& k,
                                        const Lines<kKeys, kM>& v, const Shared& shared, int group) const {
    begin_transposed(score, shared.q, group * kGroupRows, k);
    begin_transposed(dprob, shared.dout, group * kGroupRows, v);
  }
};

template <int kN, int kM>
struct BackwardQ {
  static constexpr int kKeys = 64, kDepth = 3;
  using Rows = std::conditional_t<kN <= 128, RowsInRegisters<kN, kM>, RowsInLines<kN, kM>>;
  struct Shared {
    Lines<kKeys, kN> k[kDepth];
    Lines<kKeys, kM> v[kDepth];
    typename Rows::Shared rows;  // behind: an empty one has a byte
    KeyRange seen[kTileRows];
    Barrier full[kDepth], empty[kDepth];
  };
};

template <int kN, int kM>
__global__ void __launch_bounds__(kThreads, 1)
    dq_kernel(const __grid_constant__ TensorMap k_map, const __grid_constant__ TensorMap v_map,
              Rows<bf16> dq_THN, Operands in, Gradients gradients, int n_tiles) {
  using B = BackwardQ<kN, kM>;
  auto& shared = swizzled_shared<typename B::Shared>();
  const AttentionSizes& sizes = in.sizes;
  const RowTile tile(in, n_tiles);
  const AttentionPlace& place = tile.place;
  const TileKeys& keys = tile.keys;
  const int row0 = tile.row0;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  if (threadIdx.x == 0) {
    prefetch_map(k_map);
    prefetch_map(v_map);
    for (int stage = 0; stage < B::kDepth; ++stage) {
      barrier_init(shared.full[stage], 1);
      barrier_init(shared.empty[stage], kConsumerWarps);
    }
    fence_proxy_async();
  }
  __syncthreads();

  if (warp >= kConsumerWarps) {
    release_registers<kBulkRegisters>();
    if (warp > kConsumerWarps || lane() > 0) return;
    Ring<B::kDepth> ring;
    for (int key0 = keys.some.begin; key0 < keys.some.end; key0 += B::kKeys) {
      Barrier& full = shared.full[ring.stage];
      barrier_wait(shared.empty[ring.stage], ring.parity ^ 1);
      barrier_arrive_expecting(full, sizeof shared.k[0] + sizeof shared.v[0]);
      bulk_copy_lines(shared.k[ring.stage], k_map, full, place.seq, key0, place.g * kN);
      bulk_copy_lines(shared.v[ring.stage], v_map, full, place.seq, key0, place.g * kM);
      ring.advance();
    }
    return;
  }

  claim_registers<kBulkSumRegisters>();
  const int group = warp / (kGroupThreads / kWarp), group_row = group * kGroupRows;
  const int warp_row = warp * 16;
  typename B::Rows rows;
  rows.load(shared.rows, query_rows(in.q_THN, sizes, place, kN),
            query_rows(gradients.dout_THM, sizes, place, kM), row0, sizes.rows(), group);
  set_seen(shared.seen, tile, sizes, group_row);
  const RowsFacts<1> facts(gradients, sizes, place, row0 + warp_row);
  wait_for_own_copies(group);

  const float scale = sizes.scale * kLog2E;
  Sums<1, kN> dq{};
  Sums<1, B::kKeys> score, dprob;
  LeftOperand<B::kKeys> dscore;
  const auto weigh_scores = [&](int key0) {
    if (key0 < keys.all.begin || key0 + B::kKeys > keys.all.end)
      hide_unseen(score, shared.seen + warp_row, key0);
    differentiate(score, dprob, facts, scale);
    dscore.set(score);
  };
  Ring<B::kDepth> ring;  // of the keys whose scores are next; what they add to dq follows with the next ones'
  barrier_wait(shared.full[ring.stage], ring.parity);
  wgmma_fence();
  rows.begin(score, dprob, shared.k[ring.stage], shared.v[ring.stage], shared.rows, group);
  wgmma_wait<0>();
  weigh_scores(keys.some.begin);
  int weighed = ring.stage;
  ring.advance();
  for (int key0 = keys.some.begin + B::kKeys; key0 < keys.some.end; key0 += B::kKeys) {
    barrier_wait(shared.full[ring.stage], ring.parity);
    wgmma_fence();
    begin_add(dq, dscore, shared.k[weighed]);
    rows.begin(score, dprob, shared.k[ring.stage], shared.v[ring.stage], shared.rows, group);
    wgmma_wait<0>();
    release(shared.empty[weighed]);
    weigh_scores(key0);
    weighed = ring.stage;
    ring.advance();
  }
  wgmma_fence();
  begin_add(dq, dscore, shared.k[weighed]);
  wgmma_wait<0>();
  write_query_rows(dq_THN, dq, sizes, place, row0 + warp_row);
}

// ---- backward: dk, dv ----

template <int kN, int kM>
struct BackwardKv {
  static constexpr int kKeys = kTileRows, kRows = kN > 128 ? 32 : 64;  // as registers allow
  struct Shared {
    Lines<kKeys, kN> k;
    Lines<kKeys, kM> v;
    Lines<kRows, kN> q[kPieceStages];
    Lines<kRows, kM> dout[kPieceStages];
    RowFacts facts[kPieceStages][kRows];
    Barrier full[kPieceStages], empty[kPieceStages];
  };
};

// The query rows and output gradients of dkv_kernel as boxes of its tiles; not used where the group divides no
// tile.
struct RowMaps {
  TensorMap q, dout;
  bool used;
};

// Scores are transposed here: a sum's rows are keys, its columns query rows.
template <int kN, int kM>
__global__ void __launch_bounds__(kThreads, 1)
    dkv_kernel(const __grid_constant__ RowMaps maps, Rows<bf16> dk_TGN, Rows<bf16> dv_TGM, Operands in,
               Gradients gradients, int n_tiles) {
  using B = BackwardKv<kN, kM>;
  auto& shared = swizzled_shared<typename B::Shared>();
  const AttentionSizes& sizes = in.sizes;
  const AttentionPlace place = attention_place(sizes, n_tiles);
  const int* const kv_begin_S = in.kv_begin_T + std::int64_t{place.seq} * sizes.seq_len;
  const int key0 = place.tile * B::kKeys, warp = static_cast<int>(threadIdx.x) / kWarp;
  const TileRows rows = rows_of_keys<kThreads>(kv_begin_S, sizes, key0, key0 + B::kKeys);
  if (threadIdx.x == 0) {
    if (maps.used) {
      prefetch_map(maps.q);
      prefetch_map(maps.dout);
    }
    for (int stage = 0; stage < kPieceStages; ++stage) {
      barrier_init(shared.full[stage], maps.used ? B::kRows : kGroupThreads);
      barrier_init(shared.empty[stage], kConsumerWarps);
    }
    fence_proxy_async();
  }
  __syncthreads();

  if (warp >= kConsumerWarps) {
    release_registers<kPieceRegisters>();
    const auto q = query_rows(in.q_THN, sizes, place, kN);
    const auto dout = query_rows(gradients.dout_THM, sizes, place, kM);
    const int thread = static_cast<int>(threadIdx.x) % kGroupThreads;
    const auto hand_over = [&](int stage) {
      async_wait<0>();
      fence_proxy_async();
      barrier_arrive(shared.full[stage]);
    };
    const auto facts_of = [&](int row0) {
      return facts_of_row(gradients, kv_begin_S, sizes, place,
                          thread < B::kRows && row0 + thread < rows.end ? row0 + thread : -1);
    };
    Ring<kPieceStages> ring;
    RowFacts facts = facts_of(rows.begin);  // read a turn before they are needed
    if (maps.used) {                        // a thread for each row's facts; the first begins the copies too
      if (thread >= B::kRows) return;
      // Rows behind rows.end are those of other documents, or zeros behind the sequence; their P is 0.
      for (int row0 = rows.begin; row0 < rows.end; row0 += B::kRows) {
        Barrier& full = shared.full[ring.stage];
        barrier_wait(shared.empty[ring.stage], ring.parity ^ 1);
        shared.facts[ring.stage][thread] = facts;
        if (thread == 0) {
          const int query = row0 / sizes.group, head = place.g * sizes.group;
          barrier_arrive_expecting(full, sizeof shared.q[0] + sizeof shared.dout[0]);
          bulk_copy_heads(shared.q[ring.stage], maps.q, full, place.seq, query, head);
          bulk_copy_heads(shared.dout[ring.stage], maps.dout, full, place.seq, query, head);
        } else {
          barrier_arrive(full);
        }
        facts = facts_of(row0 + B::kRows);
        ring.advance();
      }
      return;
    }
    int before = -1;
    for (int row0 = rows.begin; row0 < rows.end; row0 += B::kRows) {
      if (before >= 0) hand_over(before);
      barrier_wait(shared.empty[ring.stage], ring.parity ^ 1);
      start_lines<B::kRows>(shared.q[ring.stage], 0, q, row0, rows.end);
      start_lines<B::kRows>(shared.dout[ring.stage], 0, dout, row0, rows.end);
      async_commit();
      if (thread < B::kRows) shared.facts[ring.stage][thread] = facts;
      facts = facts_of(row0 + B::kRows);
      before = ring.stage;
      ring.advance();
    }
    if (before >= 0) hand_over(before);
    return;
  }

  claim_registers<kPieceSumRegisters>();
  const int group = warp / (kGroupThreads / kWarp), group_key = group * kGroupRows;
  const int warp_key = key0 + warp * 16;
  start_lines<kGroupRows>(shared.k, group_key, key_rows(in.k_TGN, sizes, place, kN), key0 + group_key,
                          sizes.keys());
  start_lines<kGroupRows>(shared.v, group_key, key_rows(in.v_TGM, sizes, place, kM), key0 + group_key,
                          sizes.keys());
  async_commit();
  wait_for_own_copies(group);

  const float scale = sizes.scale * kLog2E;
  Sums<1, kN> dk{};
  Sums<1, kM> dv{};
  Sums<1, B::kRows> score, dprob;
  LeftOperand<B::kRows> prob, dscore;
  Ring<kPieceStages> ring;
  for (int row0 = rows.begin; row0 < rows.end; row0 += B::kRows) {
    barrier_wait(shared.full[ring.stage], ring.parity);
    const RowFacts* const facts = shared.facts[ring.stage];
    wgmma_fence();
    begin_transposed(score, shared.k, group_key, shared.q[ring.stage]);
    begin_transposed(dprob, shared.v, group_key, shared.dout[ring.stage]);
    wgmma_wait<1>();  // the scores
    if (rows.late || row0 < (key0 + B::kKeys - 1) * sizes.group) hide_unseen_columns(score, facts, warp_key);
    weigh_columns(score, facts, scale);
    prob.set(score);
    wgmma_fence();
    begin_add(dv, prob, shared.dout[ring.stage]);
    wgmma_wait<1>();  // the scores' gradients; dv is being added to
    // With P as it was rounded: there are no registers for both.
    differentiate_columns(
        dprob, [&](int c, int j) { return prob.value(c, j); }, facts);
    dscore.set(dprob);
    wgmma_fence();
    begin_add(dk, dscore, shared.q[ring.stage]);
    wgmma_wait<0>();
    release(shared.empty[ring.stage]);
    ring.advance();
  }
  write_key_rows(dk_TGN, dk, sizes.scale, sizes, place, warp_key, 0, kN);
  write_key_rows(dv_TGM, dv, 1, sizes, place, warp_key, 0, kM);
}

// ---- the choice of a kernel ----

// The keys or values of each sequence, heads side by side.
BoxedMatrices matrices_of(const Tensor& rows_TGX, const AttentionSizes& sizes, std::int64_t n_seq) {
  return {rows_TGX.raw(),        n_seq,
          sizes.keys(),          rows_TGX.row_size(),
          rows_TGX.row_stride(), sizes.keys() * rows_TGX.row_stride()};
}
// The heads of each sequence's query rows.
BoxedHeads heads_of(const Tensor& rows_THX, const AttentionSizes& sizes, std::int64_t n_seq) {
  const std::int64_t heads = std::int64_t{sizes.n_kv_heads} * sizes.group;
  return {rows_THX.raw(),
          n_seq,
          sizes.seq_len,
          heads,
          rows_THX.row_size() / heads,
          rows_THX.row_stride(),
          sizes.seq_len * rows_THX.row_stride()};
}
RowMaps row_maps_of(const char* op, const AttentionBackward& x, int tile_rows) {
  const int group = x.sizes.group;
  const BoxedHeads q = heads_of(x.q_THN, x.sizes, x.n_seq), dout = heads_of(x.dout_THM, x.sizes, x.n_seq);
  if (tile_rows % group != 0 || !fits_tensor_map(q) || !fits_tensor_map(dout)) return {{}, {}, false};
  return {make_tensor_map(op, q, tile_rows / group, group), make_tensor_map(op, dout, tile_rows / group, group),
          true};
}
template <class Call>
bool can_serve(const Call& x) {
  return device_has_wgmma() && attention_mma_serves(x) &&
         fits_tensor_map(matrices_of(x.k_TGN, x.sizes, x.n_seq)) &&
         fits_tensor_map(matrices_of(x.v_TGM, x.sizes, x.n_seq));
}

template <int kN, int kM>
void forward(const AttentionForward& x, Context& ctx) {
  using F = Forward<kN, kM>;
  constexpr const char* kName = "attention_forward";
  const std::int64_t n_tiles = ceil_div(x.sizes.rows(), kTileRows);
  launch(kName, forward_kernel<kN, kM>,
         {blocks(x.n_seq * x.sizes.n_kv_heads * n_tiles), kThreads, kSwizzledBytes<typename F::Shared>}, ctx,
         make_tensor_map(kName, matrices_of(x.k_TGN, x.sizes, x.n_seq), F::kKeys),
         make_tensor_map(kName, matrices_of(x.v_TGM, x.sizes, x.n_seq), F::kKeys), outputs_of(x),
         operands_of(x), n_tiles);
}

template <int kN, int kM>
void backward(const AttentionBackward& x, Context& ctx) {
  using Q = BackwardQ<kN, kM>;
  using Kv = BackwardKv<kN, kM>;
  constexpr const char *kQ = "attention_backward: dq", *kKv = "attention_backward: dk, dv";
  const Operands in = operands_of(x);
  const Gradients gradients = gradients_of(x);
  const std::int64_t heads = x.n_seq * x.sizes.n_kv_heads;
  const std::int64_t row_tiles = ceil_div(x.sizes.rows(), kTileRows),
                     key_tiles = ceil_div(x.sizes.keys(), Kv::kKeys);
  launch(kQ, dq_kernel<kN, kM>, {blocks(heads * row_tiles), kThreads, kSwizzledBytes<typename Q::Shared>}, ctx,
         make_tensor_map(kQ, matrices_of(x.k_TGN, x.sizes, x.n_seq), Q::kKeys),
         make_tensor_map(kQ, matrices_of(x.v_TGM, x.sizes, x.n_seq), Q::kKeys), rows_of<bf16>(x.dq_THN), in,
         gradients, row_tiles);
  launch(kKv, dkv_kernel<kN, kM>, {blocks(heads * key_tiles), kThreads, kSwizzledBytes<typename Kv::Shared>},
         ctx, row_maps_of(kKv, x, Kv::kRows), rows_of<bf16>(x.dk_TGN), rows_of<bf16>(x.dv_TGM), in, gradients,
         key_tiles);
}

bool heads_are(const AttentionSizes& sizes, int width_N, int width_M) {
  return sizes.width_N == width_N && sizes.width_M == width_M;
}

}  // namespace

// With the sums for the entropy the compiler makes products wait for each other: attention_mma.cu gives it.
bool attention_wgmma(const AttentionForward& x, Context& ctx) {
  if (x.entropy_TH.defined() || !can_serve(x)) return false;
  if (heads_are(x.sizes, 64, 64)) return forward<64, 64>(x, ctx), true;
  if (heads_are(x.sizes, 128, 128)) return forward<128, 128>(x, ctx), true;
  if (heads_are(x.sizes, 192, 128)) return forward<192, 128>(x, ctx), true;  // latent attention
  if (heads_are(x.sizes, 256, 256)) return forward<256, 256>(x, ctx), true;
  return false;
}

// Wider heads leave no room in registers for their sums.
bool attention_wgmma(const AttentionBackward& x, Context& ctx) {
  if (!can_serve(x)) return false;
  if (heads_are(x.sizes, 64, 64)) return backward<64, 64>(x, ctx), true;
  if (heads_are(x.sizes, 128, 128)) return backward<128, 128>(x, ctx), true;
  if (heads_are(x.sizes, 192, 128)) return backward<192, 128>(x, ctx), true;
  return false;
}

}  // namespace switchyard::ops::cuda
