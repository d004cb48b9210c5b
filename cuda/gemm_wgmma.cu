// A warp begins bulk copies into a ring of stages in shared memory; two warpgroups multiply, each 64 rows of a
// tile of 128 x kTileN sums in registers. Operands reach the tensor cores without passing through registers,
// and nobody but the one warp computes addresses. One block a multiprocessor, which goes from tile to tile: the
// next one is found, and its copies begin, while this one is multiplied; its sums leave by bulk copies, under
// the next one's products.
//   Compiled for sm_90a alone (CMakeLists.txt).
#include "gemm.h"

#include "device.h"
#include "gemm_tile.h"
#include "leaving_sums.h"
#include "silu.h"
#include "wgmma.h"

namespace switchyard::ops::cuda {

namespace {

constexpr int kGroupRows = 64, kGroups = 2;  // of a tile: a warpgroup each
constexpr int kGroupThreads = 128, kConsumers = kGroups * kGroupThreads, kConsumerWarps = kConsumers / kWarp;
constexpr int kWgmmaThreads = kConsumers + kGroupThreads;
// Registers of a thread that copies and of one that multiplies; both start with 168.
constexpr int kCopyRegisters = 40, kSumRegisters = 232;
static_assert(kCopyRegisters + kGroups * kSumRegisters == (1 + kGroups) * 168);
constexpr int kStepK = 64, kInstructionK = 16;
constexpr int kLineBytes = 2 * kBoxColumns;
static_assert(kTile == kGroups * kGroupRows && kBoxColumns == 64 && kStepK == 64);

template <int kTileN>
struct WgmmaShared {
  static constexpr int kColumns = kTileN;
  static constexpr int kDepth = kTileN > 128 ? 4 : 6;  // stages: 192 KiB
  struct Stage {
    // Of an operand along K a line for each row of the tile; else blocks of 64 rows, with a line for each k.
    bf16 a[kTile * kStepK], b[kTileN * kStepK];
  };
  static_assert(sizeof(bf16) * kTile * kStepK % kSwizzleSpan == 0 && sizeof(Stage) % kSwizzleSpan == 0);
  Stage stage[kDepth];
  Slices slices[kConsumerWarps];
  Tile tile[kDepth];      // to which the stage belongs; without rows: there are no more
  Barrier full[kDepth];   // the stage's copies have arrived
  Barrier empty[kDepth];  // all warps have multiplied it
};

// Begins to copy a step's piece of an operand: kRows rows from `first` on, K from k on.
template <bool kAlongK, int kRows>
__device__ __forceinline__ void copy_operand(bf16* to, const TensorMap& map, Barrier& full, int matrix,
                                             int first, int k) {
  if constexpr (kAlongK) {
    bulk_copy(to, map, full, matrix, first, k);
  } else {
    for (int block = 0; block < kRows / kBoxColumns; ++block)
      bulk_copy(to + block * kBoxColumns * kStepK, map, full, matrix, k, first + block * kBoxColumns);
  }
}

// Zeros in the lines of an operand across K from line first_k of each block on.
template <int kRows>
__device__ __forceinline__ void clear_lines(bf16* operand, int first_k) {
  const int chunks = (kStepK - first_k) * kLineBytes / 16;  // of a block
  for (int i = static_cast<int>(threadIdx.x); i < kRows / kBoxColumns * chunks; i += kConsumers)
    store<kChunk>(operand + (i / chunks * kStepK + first_k) * kBoxColumns + i % chunks * kChunk,
                  Elements<bf16, kChunk>{});
}
// Waits for a stage, of which the first k_left of K belong to the tile. Matrices along K end with it. Across K
// rows of the next expert follow, or rows of none with anything in them: they count as zeros. All consumers.
template <bool kAlongK, class Shared>
__device__ __forceinline__ void wait_for(Shared& shared, int stage, unsigned parity, int k_left) {
  barrier_wait(shared.full[stage], parity);
  if constexpr (!kAlongK) {
    if (k_left >= kStepK) return;
    clear_lines<kTile>(shared.stage[stage].a, k_left);
    clear_lines<Shared::kColumns>(shared.stage[stage].b, k_left);
    fence_proxy_async();
    sync_some(1, kConsumers);
  }
}

// An operand's row `first` and its first k, and how far the next 16 of K are.
template <bool kAlongK>
__device__ __forceinline__ std::uint64_t operand_from(const bf16* operand, int first) {
  constexpr int kNextLines = 8 * kLineBytes, kNextBlock = kStepK * kLineBytes;
  return operand_at(operand + first * kStepK, kAlongK ? 16 : kNextBlock, kNextLines);
}
template <bool kAlongK>
constexpr int kNextK = kInstructionK*(kAlongK ? 2 : kLineBytes);

// What becomes of the sums. They are c, of which the rows are whole packs, and leave by bulk copies, added to
// what is there where the product has an addend;
struct Bulk {
  TensorMap c;
};
// or they are c, written two columns at a time;
struct Plain {};
// or c is gate_up_R2F, and it is activated too. Half the columns of a tile are gates, the others the ups that
// belong to them, so that a thread has both.
struct GateUp {
  TensorMap gate_up;  // two matrices
  TensorMap act;
  Rows<bf16> act_RF;
  const float* weight_R;
};

// `warp_row`: the warp's first row.
template <GemmLayout kLayout, int kTileN, class Out>
__device__ __forceinline__ void write_sums(const float (&sum)[kTileN / 2], const Product<bf16, Out>& p,
                                           const Tile& tile, int warp_row, const Bulk& to, Slices& slices) {
  if (warp_row >= tile.m_end) return;
  const SliceTarget<Out> target{to.c,
                                a_along_k(kLayout) ? 0 : tile.expert,
                                warp_row,
                                tile.m_end,
                                !a_along_k(kLayout) || tile.m_end == p.m,
                                p.c_MN,
                                p.n,
                                p.addend_MN.data != nullptr};
  send_sums(sum, target, slices, tile.n_first);
}
template <GemmLayout kLayout, int kTileN, class Out>
__device__ __forceinline__ void write_sums(const float (&sum)[kTileN / 2], const Product<bf16, Out>& p,
                                           const Tile& tile, int warp_row, const Plain&, Slices&) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  SY_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int m = warp_row + lane / 4 + 8 * half;
    if (m >= tile.m_end) continue;
    const int n_first = tile.n_first + 2 * (lane % 4);
    SY_UNROLL
    for (int j = 0; j < kTileN / 8; ++j) {
      const float* const pair = sum + 4 * j + 2 * half;
      const Out* const addend_N = p.addend_MN.data != nullptr ? p.addend_MN[m] : nullptr;
      if (const int n = n_first + 8 * j; n < p.n) write<2>(p.c_MN[m], addend_N, n, {pair[0], pair[1]});
    }
  }
}
// To what bf16 holds. The compiler rounds a number alone by a unit that has an eighth of the rate, and is
// wanted for exponentials.
__device__ __forceinline__ void round_pair(float (&pair)[2]) {
#ifdef SWITCHYARD_SIMT
  for (float& x : pair) x = to_float(from_float<bf16>(x));
#else
  unsigned bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(pair[1]), "f"(pair[0]));
  pair[0] = __uint_as_float(bits << 16);
  pair[1] = __uint_as_float(bits & 0xffff0000u);
#endif
}

template <GemmLayout kLayout, int kTileN>
__device__ __forceinline__ void write_sums(const float (&sum)[kTileN / 2], const Product<bf16, bf16>& p,
                                           const Tile& tile, int warp_row, const GateUp& to, Slices& slices) {
  if (warp_row >= tile.m_end) return;
  const int width = p.n / 2;
  const bool ends_there = tile.m_end == p.m;
  const SliceTarget<bf16> gates{to.gate_up, 0, warp_row, tile.m_end, ends_there, p.c_MN, width, false};
  const SliceTarget<bf16> ups{
      to.gate_up, 1, warp_row, tile.m_end, ends_there, {p.c_MN.data + width, p.c_MN.stride}, width, false};
  const SliceTarget<bf16> acts{to.act, 0, warp_row, tile.m_end, ends_there, to.act_RF, width, false};
  float weight[2];
  SY_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int m = warp_row + static_cast<int>(threadIdx.x) % kWarp / 4 + 8 * half;
    weight[half] = m < tile.m_end ? to.weight_R[m] : 0.0f;
  }
  constexpr int kSums = kSliceColumns<bf16> / 2;  // of a thread in a slice
  SY_UNROLL
  for (int i = 0; i < kTileN / 2 / kSliceColumns<bf16>; ++i) {
    const float* const gate = sum + i * kSums;
    const float* const up = gate + kTileN / 4;
    const int f = tile.n_first / 2 + i * kSliceColumns<bf16>;
    if (f >= width) break;
    unsigned char* slice = free_slice(slices, 3 * i);
    put_slice<bf16>(slice, gate);
    send_slice(slice, gates, f);
    slice = free_slice(slices, 3 * i + 1);
    put_slice<bf16>(slice, up);
    send_slice(slice, ups, f);
    slice = free_slice(slices, 3 * i + 2);
    put_pairs(slice, [&](int q) {
      // Rounded first, to what the backward pass will read.
      float g[2] = {gate[q], gate[q + 1]}, u[2] = {up[q], up[q + 1]};
      round_pair(g);
      round_pair(u);
      Elements<bf16, 2> act;
      SY_UNROLL
      for (int r = 0; r < 2; ++r) act.element[r] = from_float<bf16>(weight[q / 2 % 2] * (silu(g[r]) * u[r]));
      return act;
    });
    send_slice(slice, acts, f);
  }
}

template <class Out, GemmLayout kLayout, int kTileN, class Epilogue>
__global__ void __launch_bounds__(kWgmmaThreads, 1)
    wgmma_kernel(const __grid_constant__ TensorMap a_map, const __grid_constant__ TensorMap b_map,
                 Product<bf16, Out> product, const __grid_constant__ Epilogue epilogue) {
  constexpr bool kA = a_along_k(kLayout), kB = b_along_k(kLayout);
  using Shared = WgmmaShared<kTileN>;
  auto& shared = swizzled_shared<Shared>();
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Shared::kDepth; ++stage) {
      barrier_init(shared.full[stage], 1);
      barrier_init(shared.empty[stage], kConsumerWarps);
    }
    fence_proxy_async();
  }
  __syncthreads();
  const int n_tiles = product.tiles_m * product.tiles_n;
  Ring<Shared::kDepth> ring;

  if (warp >= kConsumerWarps) {
    release_registers<kCopyRegisters>();
    if (warp > kConsumerWarps) return;
    for (int index = static_cast<int>(blockIdx.x); index < n_tiles; index += static_cast<int>(gridDim.x)) {
      const Tile tile = find_tile<kLayout, kTileN>(product, index);
      if (tile.m_first >= tile.m_end || lane > 0) continue;
      for (int k = tile.k_first; k < tile.k_end; k += kStepK) {
        typename Shared::Stage& stage = shared.stage[ring.stage];
        Barrier& full = shared.full[ring.stage];
        barrier_wait(shared.empty[ring.stage], ring.parity ^ 1);
        shared.tile[ring.stage] = tile;
        barrier_arrive_expecting(full, sizeof stage);
        copy_operand<kA, kTile>(stage.a, a_map, full, 0, tile.m_first, k);
        if constexpr (std::is_same_v<Epilogue, GateUp>) {
          for (int part = 0; part < 2; ++part)
            copy_operand<kB, kTileN / 2>(stage.b + part * (kTileN / 2) * kStepK, b_map, full, tile.expert,
                                         part * (product.n / 2) + tile.n_first / 2, k);
        } else {
          copy_operand<kB, kTileN>(stage.b, b_map, full, kA ? tile.expert : 0, tile.n_first, k);
        }
        ring.advance();
      }
    }
    if (lane == 0) {
      barrier_wait(shared.empty[ring.stage], ring.parity ^ 1);
      shared.tile[ring.stage] = {};
      barrier_arrive(shared.full[ring.stage]);
    }
    return;
  }

  claim_registers<kSumRegisters>();
  const int group_m = warp / (kGroupThreads / kWarp) * kGroupRows;
  const auto release = [&](Barrier& empty) {
    __syncwarp();
    if (lane == 0) barrier_arrive(empty);
  };
  float sum[kTileN / 2] = {};
  for (;;) {
    barrier_wait(shared.full[ring.stage], ring.parity);
    const Tile tile = shared.tile[ring.stage];
    if (tile.m_first >= tile.m_end) {
      bulk_wait<0>();
      return;
    }
    if (tile.m_first + group_m >= tile.m_end) {  // of an expert with few rows only half a tile is computed
      for (int k = tile.k_first; k < tile.k_end; k += kStepK) {
        wait_for<kA>(shared, ring.stage, ring.parity, tile.k_end - k);
        release(shared.empty[ring.stage]);
        ring.advance();
      }
      continue;
    }
    Barrier* multiplied = nullptr;  // `empty` of the stage that is being multiplied
    for (int k = tile.k_first; k < tile.k_end; k += kStepK) {
      typename Shared::Stage& stage = shared.stage[ring.stage];
      wait_for<kA>(shared, ring.stage, ring.parity, tile.k_end - k);
      const std::uint64_t a = operand_from<kA>(stage.a, group_m), b = operand_from<kB>(stage.b, 0);
      wgmma_fence();
      SY_UNROLL
      for (int i = 0; i < kStepK / kInstructionK; ++i)
        wgmma<!kA, !kB>(sum, moved(a, i * kNextK<kA>), moved(b, i * kNextK<kB>), k > tile.k_first || i > 0);
      wgmma_commit();
      wgmma_wait<1>();  // the previous step's: two are in flight
      if (multiplied != nullptr) release(*multiplied);
      multiplied = &shared.empty[ring.stage];
      ring.advance();
    }
    wgmma_wait<0>();
    release(*multiplied);

    write_sums<kLayout, kTileN>(sum, of_expert<kLayout>(product, tile.expert), tile,
                                tile.m_first + group_m + warp % 4 * kSliceRows, epilogue, shared.slices[warp]);
  }
}

// ---- the choice of a kernel ----

BoxedMatrices boxed(const Matrix& m) {
  return {m.data, m.matrices, m.rows, m.columns, m.stride, m.matrix_stride, m.dtype};
}

bool can_multiply(const Matrix& a, const Matrix& b) {
  return a.dtype == DType::bf16 && b.dtype == DType::bf16 && device_has_wgmma() && fits_tensor_map(boxed(a)) &&
         fits_tensor_map(boxed(b));
}

template <class Out, GemmLayout kLayout, int kTileN, class Epilogue>
void launch_tiles_of(const char* op, const Matrix& a, const Matrix& b, Product<bf16, Out> product,
                     const Epilogue& epilogue, int multiprocessors, Context& ctx) {
  constexpr int kBRows = std::is_same_v<Epilogue, GateUp> ? kTileN / 2 : kTileN;
  product.tiles_n = static_cast<int>(ceil_div(product.n, kTileN));
  const std::int64_t n_tiles = std::int64_t{product.tiles_m} * product.tiles_n;
  SY_CHECK(n_tiles < 0x7fffffff - multiprocessors, "{}: {} tiles", op, n_tiles);
  const auto grid = static_cast<unsigned>(std::min<std::int64_t>(n_tiles, multiprocessors));
  launch(op, wgmma_kernel<Out, kLayout, kTileN, Epilogue>,
         {grid, kWgmmaThreads, kSwizzledBytes<WgmmaShared<kTileN>>}, ctx,
         make_tensor_map(op, boxed(a), a_along_k(kLayout) ? kTile : kStepK),
         make_tensor_map(op, boxed(b), b_along_k(kLayout) ? kBRows : kStepK), product, epilogue);
}

template <class Out, GemmLayout kLayout, class Epilogue>
void launch_wgmma(const char* op, const Matrix& c, const Matrix& a, const Matrix& b, bool add,
                  const int* offset_Ep, const Epilogue& epilogue, Context& ctx) {
  constexpr bool kA = a_along_k(kLayout);
  const std::int64_t m = c.rows, n = c.columns, k = kA ? a.columns : a.rows;
  const std::int64_t n_experts = kA ? b.matrices : c.matrices;
  for (std::int64_t size : {m, n, k}) SY_CHECK(size < 0x7fffffff - 256, "{}: a dimension of {}", op, size);
  std::int64_t tiles_m = ceil_div(m, kTile);
  if (offset_Ep != nullptr) tiles_m = kA ? m / kTile + std::min(m, n_experts) : tiles_m * n_experts;
  SY_CHECK(tiles_m < 0x7fffffff, "{}: {} tiles", op, tiles_m);
  auto* const to = static_cast<Out*>(c.data);
  const Product<bf16, Out> product{.a = {},
                                   .b = {},
                                   .c_MN = {to, c.stride},
                                   .m = static_cast<int>(m),
                                   .n = static_cast<int>(n),
                                   .k = static_cast<int>(k),
                                   .tiles_m = static_cast<int>(tiles_m),
                                   .tiles_n = 0,
                                   .addend_MN = {add ? to : nullptr, c.stride},
                                   .offset_Ep = offset_Ep,
                                   .n_experts = static_cast<int>(n_experts),
                                   .expert_stride = kA ? b.matrix_stride : c.matrix_stride};
  // All wait for the blocks that have one tile more than others. A wide tile takes the time of one and a half
  // narrow ones, and not of two: for a step of K it reads 48 KiB where they read 32 each, and reading is what
  // L2 has no more than enough rate for.
  const int multiprocessors = cuda::multiprocessors();
  if constexpr (!std::is_same_v<Epilogue, Plain>) {  // rare: one width will do
    const auto turns = [&](std::int64_t width) {
      return ceil_div(tiles_m * ceil_div(n, width), multiprocessors);
    };
    if (n > 128 && 3 * turns(256) <= 2 * turns(128))
      return launch_tiles_of<Out, kLayout, 256>(op, a, b, product, epilogue, multiprocessors, ctx);
  }
  launch_tiles_of<Out, kLayout, 128>(op, a, b, product, epilogue, multiprocessors, ctx);
}

}  // namespace

bool wgmma_multiply(const char* op, GemmLayout layout, const Matrix& c, const Matrix& a, const Matrix& b,
                    bool add, const int* offset_Ep, Context& ctx) {
  if (!can_multiply(a, b) || !c.is_of_pieces(2)) return false;
  // bf16 is added to in registers, so that the sum is rounded once.
  const bool leaves = c.packs() && fits_tensor_map(boxed(c)) && !(add && c.dtype == DType::bf16);
  with_element(c.dtype, [&]<class Out>() {
    const auto with = [&]<GemmLayout kLayout>() {
      if (!leaves) return launch_wgmma<Out, kLayout>(op, c, a, b, add, offset_Ep, Plain{}, ctx);
      const Bulk epilogue{make_tensor_map(op, boxed(c), kSliceRows)};
      launch_wgmma<Out, kLayout>(op, c, a, b, add, offset_Ep, epilogue, ctx);
    };
    switch (layout) {
      case GemmLayout::nt:
        return with.template operator()<GemmLayout::nt>();
      case GemmLayout::nn:
        return with.template operator()<GemmLayout::nn>();
      case GemmLayout::tn:
        return with.template operator()<GemmLayout::tn>();
    }
  });
  return true;
}

bool wgmma_gate_up(const char* op, const Matrix& act_RF, const Matrix& gate_up_R2F, const Matrix& in_RK,
                   const Matrix& weight_E2FK, const Tensor& weight_R, const int* offset_Ep, Context& ctx) {
  if (act_RF.dtype != DType::bf16 || gate_up_R2F.dtype != DType::bf16 || !act_RF.packs() ||
      !gate_up_R2F.packs() || !can_multiply(in_RK, weight_E2FK))
    return false;
  const std::int64_t width = act_RF.columns;
  const BoxedMatrices halves{gate_up_R2F.data, 2, gate_up_R2F.rows, width, gate_up_R2F.stride, width};
  if (!fits_tensor_map(halves) || !fits_tensor_map(boxed(act_RF))) return false;
  const GateUp epilogue{make_tensor_map(op, halves, kSliceRows),
                        make_tensor_map(op, boxed(act_RF), kSliceRows),
                        {static_cast<bf16*>(act_RF.data), act_RF.stride},
                        weight_R.as<float>()};
  launch_wgmma<bf16, GemmLayout::nt>(op, gate_up_R2F, in_RK, weight_E2FK, false, offset_Ep, epilogue, ctx);
  return true;
}

}  // namespace switchyard::ops::cuda
