// Products in E4M3: operands are rounded into scratch space (e4m3_operands.h) and multiplied as gemm_wgmma.cu
// multiplies bf16, a warp copying and two warpgroups multiplying, each 64 rows of a tile of 128 x 128. Tensor
// cores sum 128 products in registers that begin as zeros; these sums are scaled and added up in float32, where
// while one warpgroup adds the other one's products are computed. All operands lie along the dimension that is
// summed over, the only way in which wgmma reads FP8.
//   Compiled for sm_90a alone (CMakeLists.txt).
#include "device.h"
#include "e4m3_operands.h"
#include "gemm.h"
#include "gemm_tile.h"
#include "leaving_sums.h"
#include "wgmma.h"

namespace switchyard::ops::cuda {

namespace {

constexpr int kGroupRows = 64, kGroups = 2;  // of a tile: a warpgroup each
constexpr int kGroupThreads = 128, kConsumers = kGroups * kGroupThreads, kConsumerWarps = kConsumers / kWarp;
constexpr int kE4m3Threads = kConsumers + kGroupThreads;
// Registers of a thread that copies and of one that multiplies; both start with 168.
constexpr int kCopyRegisters = 40, kSumRegisters = 232;
static_assert(kCopyRegisters + kGroups * kSumRegisters == (1 + kGroups) * 168);
constexpr int kInstructionK = 32;
constexpr int kLineBytes = kE4m3Tile;          // a tile of a row is a line
static_assert(kLineBytes == 2 * kBoxColumns);  // boxes are of bf16: two bytes each
static_assert(kTile == kGroups * kGroupRows);
constexpr int kSums = kTile / 2;  // of a thread: 64 x 128 of a warpgroup

constexpr int kDepth = 6;
struct E4m3Shared {
  struct Stage {
    std::uint8_t a[kTile * kLineBytes], b[kTile * kLineBytes];
  };
  static_assert(sizeof(Stage) % kSwizzleSpan == 0);
  Stage stage[kDepth];
  Slices slices[kConsumerWarps];
  Tile tile[kDepth];      // to which the stage belongs; without rows: there are no more
  Barrier full[kDepth];   // the stage's copies have arrived
  Barrier empty[kDepth];  // all warps have multiplied it
};

// How many tiles of 128 rows the experts before this one have. All lanes of the warp.
__device__ __forceinline__ int tiles_before(const int* offset_Ep, int expert) {
  int tiles = 0;
  for (int e = static_cast<int>(threadIdx.x) % kWarp; e < expert; e += kWarp)
    tiles += (offset_Ep[e + 1] - offset_Ep[e] + kE4m3Tile - 1) / kE4m3Tile;
  return reduce_warp<Sum>(tiles);
}

// Tile number `index`, with k_first and k_end counted in tiles of 128. All lanes of the warp.
template <GemmLayout kLayout, class Out>
__device__ __forceinline__ Tile find_e4m3_tile(const Product<bf16, Out>& p, int index) {
  Tile tile = find_tile<kLayout>(p, index);
  const int tiles = (tile.k_end - tile.k_first + kE4m3Tile - 1) / kE4m3Tile;
  tile.k_first = 0;
  if constexpr (!a_along_k(kLayout)) {
    if (p.offset_Ep != nullptr) tile.k_first = tiles_before(p.offset_Ep, tile.expert);
  }
  tile.k_end = tile.k_first + tiles;
  return tile;
}

// The scales of one tile of K: of a thread's two rows, and of b: one (kLayout nt), or those of its 32 columns.
template <GemmLayout kLayout>
struct ThreadScales {
  static constexpr bool kOfColumns = kLayout == GemmLayout::tn;
  float row[2];
  Elements<float, 2> column[kOfColumns ? kSums / 4 : 1];
};
struct Scales {
  Rows<const float> a_tM;
  const float* b;         // nt: [expert][tile of N][tile of K]
  std::int64_t b_stride;  // tn: from one tile of K to the next
};
template <GemmLayout kLayout, class Out>
__device__ __forceinline__ ThreadScales<kLayout> load_scales(const Scales& scales, const Product<bf16, Out>& p,
                                                             const Tile& tile, int first_row, int t) {
  ThreadScales<kLayout> own;
  SY_UNROLL
  for (int half = 0; half < 2; ++half)
    own.row[half] = first_row + 8 * half < tile.m_end ? scales.a_tM[t][first_row + 8 * half] : 0.0f;
  if constexpr (ThreadScales<kLayout>::kOfColumns) {
    const float* const of_tile = scales.b + t * scales.b_stride;
    SY_UNROLL
    for (int j = 0; j < kSums / 4; ++j) {
      const int n = tile.n_first + 8 * j + 2 * (static_cast<int>(threadIdx.x) % 4);
      SY_UNROLL
      for (int q = 0; q < 2; ++q) own.column[j].element[q] = n + q < p.n ? of_tile[n + q] : 0.0f;
    }
  } else {
    const std::int64_t row_of_blocks = std::int64_t{tile.expert} * p.tiles_n + tile.n_first / kTile;
    own.column[0].element[0] = scales.b[row_of_blocks * tile.k_end + t];
  }
  return own;
}

// How sums reach c: by bulk copies (leaving_sums.h), or four or one at a time by the threads that have them.
enum class Writing { bulk, packs, singles };

template <class Out, GemmLayout kLayout, Writing kWriting>
__global__ void __launch_bounds__(kE4m3Threads, 1)
    e4m3_kernel(const __grid_constant__ TensorMap a_map, const __grid_constant__ TensorMap b_map,
                const __grid_constant__ TensorMap c_map, Product<bf16, Out> product, Scales scales) {
  auto& shared = swizzled_shared<E4m3Shared>();
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kDepth; ++stage) {
      barrier_init(shared.full[stage], 1);
      barrier_init(shared.empty[stage], kConsumerWarps);
    }
    fence_proxy_async();
  }
  __syncthreads();
  const int n_tiles = product.tiles_m * product.tiles_n;
  Ring<kDepth> ring;

  if (warp >= kConsumerWarps) {
    release_registers<kCopyRegisters>();
    if (warp > kConsumerWarps) return;
    for (int index = static_cast<int>(blockIdx.x); index < n_tiles; index += static_cast<int>(gridDim.x)) {
      const Tile tile = find_e4m3_tile<kLayout>(product, index);
      if (tile.m_first >= tile.m_end || lane > 0) continue;
      for (int t = tile.k_first; t < tile.k_end; ++t) {
        E4m3Shared::Stage& stage = shared.stage[ring.stage];
        Barrier& full = shared.full[ring.stage];
        barrier_wait(shared.empty[ring.stage], ring.parity ^ 1);
        shared.tile[ring.stage] = tile;
        barrier_arrive_expecting(full, sizeof stage);
        bulk_copy(stage.a, a_map, full, 0, tile.m_first, t * kBoxColumns);
        bulk_copy(stage.b, b_map, full, a_along_k(kLayout) ? tile.expert : 0, tile.n_first, t * kBoxColumns);
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
  for (;;) {
    barrier_wait(shared.full[ring.stage], ring.parity);
    const Tile tile = shared.tile[ring.stage];
    if (tile.m_first >= tile.m_end) {
      if constexpr (kWriting == Writing::bulk) bulk_wait<0>();
      return;
    }
    if (tile.m_first + group_m >= tile.m_end) {  // of an expert with few rows only half a tile is computed
      for (int t = tile.k_first; t < tile.k_end; ++t) {
        barrier_wait(shared.full[ring.stage], ring.parity);
        release(shared.empty[ring.stage]);
        ring.advance();
      }
      continue;
    }
    const int first_row = tile.m_first + group_m + warp % 4 * 16 + lane / 4;
    float sum[kSums] = {};
    for (int t = tile.k_first; t < tile.k_end; ++t) {
      const ThreadScales<kLayout> scale = load_scales<kLayout>(scales, product, tile, first_row, t);
      const E4m3Shared::Stage& stage = shared.stage[ring.stage];
      barrier_wait(shared.full[ring.stage], ring.parity);
      const std::uint64_t a = operand_at(stage.a + group_m * kLineBytes, 16, 8 * kLineBytes),
                          b = operand_at(stage.b, 16, 8 * kLineBytes);
      float partial[kSums];
      wgmma_fence();
      SY_UNROLL
      for (int i = 0; i < kE4m3Tile / kInstructionK; ++i)
        wgmma_e4m3(partial, moved(a, i * kInstructionK), moved(b, i * kInstructionK), i > 0);
      wgmma_commit();
      wgmma_wait<0>();
      release(shared.empty[ring.stage]);
      ring.advance();
      SY_UNROLL
      for (int i = 0; i < kSums; ++i) {
        const float of_column =
            ThreadScales<kLayout>::kOfColumns ? scale.column[i / 4].element[i % 2] : scale.column[0].element[0];
        sum[i] += partial[i] * (scale.row[i / 2 % 2] * of_column);
      }
    }

    const Product<bf16, Out> p = of_expert<kLayout>(product, tile.expert);
    if constexpr (kWriting == Writing::bulk) {
      const SliceTarget<Out> target{c_map,
                                    a_along_k(kLayout) ? 0 : tile.expert,
                                    tile.m_first + group_m + warp % 4 * kSliceRows,
                                    tile.m_end,
                                    !a_along_k(kLayout) || tile.m_end == p.m,
                                    p.c_MN,
                                    p.n,
                                    p.addend_MN.data != nullptr};
      if (target.row < tile.m_end) send_sums(sum, target, shared.slices[warp], tile.n_first);
    } else {
      SY_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int m = first_row + 8 * half;
        const Out* const addend_N = p.addend_MN.data != nullptr ? p.addend_MN[m] : nullptr;
        SY_UNROLL
        for (int j = 0; j < kTile / 8; j += 2) {
          const float* const left = sum + 4 * j + 2 * half;
          write_quad<kWriting == Writing::packs>(p.c_MN[m], addend_N, tile.n_first + 8 * j, p.n,
                                                 {left[0], left[1]}, {left[4], left[5]}, m < tile.m_end);
        }
      }
    }
  }
}

BoxedMatrices boxed(const E4m3Operand& m) {
  const std::int64_t pairs = m.tiles * kBoxColumns;
  return {m.data, m.matrices, m.rows, pairs, pairs, m.rows * pairs};
}

template <class Out, GemmLayout kLayout>
void launch_e4m3(const char* op, const Matrix& c, const E4m3Operand& a, const E4m3Operand& b, std::int64_t k,
                 const Tensor& addend, const int* offset_Ep, Context& ctx) {
  constexpr bool kA = a_along_k(kLayout);
  const std::int64_t n_experts = kA ? b.matrices : c.matrices;
  std::int64_t tiles_m = ceil_div(c.rows, kTile);
  if (offset_Ep != nullptr) tiles_m = kA ? c.rows / kTile + std::min(c.rows, n_experts) : tiles_m * n_experts;
  const std::int64_t tiles_n = ceil_div(c.columns, kTile), n_tiles = tiles_m * tiles_n;
  const int multiprocessors = cuda::multiprocessors();
  SY_CHECK(k < 0x7fffffff - kTile && n_tiles < 0x7fffffff - multiprocessors, "{}: {} tiles of {} products", op,
           n_tiles, k);
  Product<bf16, Out> product{.a = {},
                             .b = {},
                             .c_MN = {static_cast<Out*>(c.data), c.stride},
                             .m = static_cast<int>(c.rows),
                             .n = static_cast<int>(c.columns),
                             .k = static_cast<int>(k),
                             .tiles_m = static_cast<int>(tiles_m),
                             .tiles_n = static_cast<int>(tiles_n),
                             .addend_MN = {},
                             .offset_Ep = offset_Ep,
                             .n_experts = static_cast<int>(n_experts),
                             .expert_stride = kA ? 0 : c.matrix_stride};
  const BoxedMatrices boxed_c{c.data, c.matrices, c.rows, c.columns, c.stride, c.matrix_stride, c.dtype};
  bool packs = c.is_of_pieces(4);
  // In place alone, and bf16 not even there: its sums are rounded once, with the addend.
  const bool leaves = c.packs() && fits_tensor_map(boxed_c) &&
                      (!addend.defined() || (addend.raw() == c.data && c.dtype == DType::f32));
  if (addend.defined()) {
    const Matrix m(addend);
    product.addend_MN = {static_cast<const Out*>(m.data), m.stride};
    packs = packs && m.is_of_pieces(4);
  }
  const Launch shape{static_cast<unsigned>(std::min<std::int64_t>(n_tiles, multiprocessors)), kE4m3Threads,
                     kSwizzledBytes<E4m3Shared>};
  const auto start = [&](auto kernel) {
    launch(op, kernel, shape, ctx, make_tensor_map(op, boxed(a), kTile), make_tensor_map(op, boxed(b), kTile),
           leaves ? make_tensor_map(op, boxed_c, kSliceRows) : TensorMap{}, product,
           Scales{{a.scale, a.scale_stride}, b.scale, b.scale_stride});
  };
  if (leaves) return start(e4m3_kernel<Out, kLayout, Writing::bulk>);
  packs ? start(e4m3_kernel<Out, kLayout, Writing::packs>) : start(e4m3_kernel<Out, kLayout, Writing::singles>);
}

}  // namespace

void e4m3_multiply(const char* op, GemmLayout layout, const Matrix& c, const Matrix& a, const Matrix& b,
                   const Tensor& addend, const int* offset_Ep, Context& ctx) {
  ScratchScope scope(ctx.scratch);
  const std::int64_t n_experts = a_along_k(layout) ? b.matrices : c.matrices;
  const int* const n_rows = offset_Ep != nullptr ? offset_Ep + n_experts : nullptr;
  with_element(c.dtype, [&]<class Out>() {
    if (layout == GemmLayout::tn)
      return launch_e4m3<Out, GemmLayout::tn>(op, c, e4m3_along_columns(op, a, offset_Ep, n_experts, ctx),
                                              e4m3_along_columns(op, b, offset_Ep, n_experts, ctx), a.rows,
                                              addend, offset_Ep, ctx);
    launch_e4m3<Out, GemmLayout::nt>(op, c, e4m3_along_rows(op, a, n_rows, ctx),
                                     e4m3_of_weight(op, b, layout == GemmLayout::nn, ctx), a.columns, addend,
                                     offset_Ep, ctx);
  });
}

}  // namespace switchyard::ops::cuda
