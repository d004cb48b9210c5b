// The counting sort is done by all of the device: blocks count their slots, a warp an expert turns the counts
// into each block's first row, and blocks rank their slots. Counts are whole numbers and ranks come from lane
// numbers, so the result is the CPU's, in any order of the blocks. Rows move in packs of 16 bytes, a warp a
// token: no barrier, and enough warps to fill the memory's queue. Rows, tokens and their gradients are f32 or
// all bf16, summed in f32; weights and their gradients are f32, expert_TK and the rest i32.
#include "ops/moe.h"

#include "elements.h"
#include "warp_per_row.h"

// Legend: T tokens, K slots a token, R routed rows, E experts, D width, B blocks, W warps of a block.

namespace switchyard::ops::cuda {

namespace {

constexpr int kSlotsAWarp = 256, kSlotsABlock = kTokenWarps * kSlotsAWarp;

// ---- the permutation ----

// count_EB[e][b]: slots of expert e in block b.
__global__ void __launch_bounds__(kTokenWarps* kWarp)
    count_kernel(Rows<int> count_EB, const int* expert_S, int n_slots, int n_experts) {
  int* const count_E = static_cast<int*>(dynamic_shared());
  const int thread = static_cast<int>(threadIdx.x), first = static_cast<int>(blockIdx.x) * kSlotsABlock;
  for (int e = thread; e < n_experts; e += kTokenWarps * kWarp) count_E[e] = 0;
  __syncthreads();
  const int last = n_slots - first < kSlotsABlock ? n_slots : first + kSlotsABlock;
  for (int s = first + thread; s < last; s += kTokenWarps * kWarp) {
    if (const int expert = expert_S[s]; expert >= 0) atomicAdd(&count_E[expert], 1);
  }
  __syncthreads();
  for (int e = thread; e < n_experts; e += kTokenWarps * kWarp) count_EB[e][blockIdx.x] = count_E[e];
}

// to[i] = the sum of from[j], j < i; returns the sum of all n. By one warp; `to` may be `from`.
__device__ int exclusive_sums(int* to, const int* from, int n) {
  int sum = 0;
  for (int first = 0; first < n; first += kWarp) {
    const int i = first + lane_of_warp(), value = i < n ? from[i] : 0;
    const int through = prefix_sum_warp(value);
    if (i < n) to[i] = sum + through - value;
    sum += __shfl_sync(kFullWarp, through, kWarp - 1);
  }
  return sum;
}

// One warp an expert: count_EB becomes before_EB, the expert's slots in earlier blocks.
__global__ void __launch_bounds__(kTokenWarps* kWarp)
    before_kernel(Rows<int> count_EB, int* count_E, int n_blocks, int n_experts) {
  const auto expert = static_cast<int>(index_of_warp());
  if (expert >= n_experts) return;  // the whole warp
  const int count = exclusive_sums(count_EB[expert], count_EB[expert], n_blocks);
  if (lane_of_warp() == 0) count_E[expert] = count;
}

// One warp.
__global__ void __launch_bounds__(kWarp) offset_kernel(int* offset_Ep, const int* count_E, int n_experts) {
  const int n_rows = exclusive_sums(offset_Ep, count_E, n_experts);
  if (lane_of_warp() == 0) offset_Ep[n_experts] = n_rows;
}

// Each warp has kSlotsAWarp slots that follow one another, and a counter of its own an expert: next_WE, first
// the count of its slots, then the row of its next slot.
__global__ void __launch_bounds__(kTokenWarps* kWarp)
    place_kernel(int* slot_row_S, const int* expert_S, const int* offset_Ep, Rows<const int> before_EB,
                 int n_slots, int n_experts) {
  int* const next_WE = static_cast<int*>(dynamic_shared());
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  int* const next_E = next_WE + warp * n_experts;
  for (int i = thread; i < kTokenWarps * n_experts; i += kTokenWarps * kWarp) next_WE[i] = 0;
  __syncthreads();
  const int first = static_cast<int>(blockIdx.x) * kSlotsABlock + warp * kSlotsAWarp;
  int expert[kSlotsAWarp / kWarp];
  for (int i = 0; i < kSlotsAWarp / kWarp; ++i) {
    const int s = first + i * kWarp + lane;
    expert[i] = s < n_slots ? expert_S[s] : -1;
    if (expert[i] >= 0) atomicAdd(&next_E[expert[i]], 1);
  }
  __syncthreads();
  for (int e = thread; e < n_experts; e += kTokenWarps * kWarp) {
    int row = offset_Ep[e] + before_EB[e][blockIdx.x];
    for (int w = 0; w < kTokenWarps; ++w) {
      const int count = next_WE[w * n_experts + e];
      next_WE[w * n_experts + e] = row;
      row += count;
    }
  }
  __syncthreads();
  for (int i = 0; i < kSlotsAWarp / kWarp; ++i) {
    const unsigned same = __match_any_sync(kFullWarp, expert[i]);
    const int rank = __popc(same & ((1u << lane) - 1));
    const int row = expert[i] >= 0 ? next_E[expert[i]] + rank : -1;
    __syncwarp();  // all have read before one adds
    if (expert[i] >= 0 && rank == 0) next_E[expert[i]] += __popc(same);
    __syncwarp();
    if (const int s = first + i * kWarp + lane; s < n_slots) slot_row_S[s] = row;
  }
}

// ---- the experts and the rows of one rank ----

__global__ void __launch_bounds__(kBlockThreads)
    keep_experts_kernel(int* expert_S, std::int64_t n_slots, int first, int n) {
  const std::int64_t s = index_of_thread();
  if (s >= n_slots) return;
  const int local = expert_S[s] - first;
  expert_S[s] = local >= 0 && local < n ? local : -1;
}

// One block: all have read the last offset before it is clipped.
__global__ void __launch_bounds__(kBlockThreads)
    limit_offsets_kernel(int* offset_Ep, int* need_1, int n_experts, int room) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0 && offset_Ep[n_experts] > need_1[0]) need_1[0] = offset_Ep[n_experts];
  __syncthreads();
  for (int e = thread; e <= n_experts; e += kBlockThreads)
    if (offset_Ep[e] > room) offset_Ep[e] = room;
}

__global__ void __launch_bounds__(kBlockThreads)
    free_slots_kernel(int* slot_row_S, std::int64_t n_slots, int room) {
  const std::int64_t s = index_of_thread();
  if (s < n_slots && slot_row_S[s] >= room) slot_row_S[s] = -1;
}

// ---- rows ----

// A null weight_R: rows alone.
template <class T, int kSize>
__global__ void __launch_bounds__(kTokenWarps* kWarp)
    copy_to_rows_kernel(Rows<T> row_RD, float* weight_R, Rows<const T> x_TD, Rows<const float> weight_TK,
                        Rows<const int> slot_row_TK, std::int64_t n_tokens, int K, int width) {
  const std::int64_t t = index_of_warp();
  if (t >= n_tokens) return;
  const T* const x = x_TD[t];
  const int* const slot_row = slot_row_TK[t];
  if (weight_R != nullptr) {
    for (int k = lane_of_warp(); k < K; k += kWarp) {
      if (const int r = slot_row[k]; r >= 0) weight_R[r] = weight_TK[t][k];
    }
  }
  for (int d = lane_of_warp() * kSize; d < width; d += kWarp * kSize) {
    const auto pack = load<kSize>(x + d);
    for (int k = 0; k < K; ++k) {
      if (const int r = slot_row[k]; r >= 0) store<kSize>(row_RD[r] + d, pack);
    }
  }
}

// out_TD[t] = residual_TD[t] + sum_k row_RD[slot_row_TK[t,k]], k ascending. A null weight_R: rows alone.
template <class T, int kSize>
__global__ void __launch_bounds__(kTokenWarps* kWarp)
    add_rows_kernel(Rows<T> out_TD, Rows<float> weight_TK, Rows<const T> residual_TD, Rows<const T> row_RD,
                    const float* weight_R, Rows<const int> slot_row_TK, std::int64_t n_tokens, int K,
                    int width) {
  constexpr int kAtOnce = 4;  // rows whose loads are under way together
  const std::int64_t t = index_of_warp();
  if (t >= n_tokens) return;
  const int* const slot_row = slot_row_TK[t];
  if (weight_R != nullptr) {
    for (int k = lane_of_warp(); k < K; k += kWarp) {
      const int r = slot_row[k];
      weight_TK[t][k] = r >= 0 ? weight_R[r] : 0.0f;
    }
  }
  T* const out = out_TD[t];
  const T* const addend = residual_TD[t];
  for (int d = lane_of_warp() * kSize; d < width; d += kWarp * kSize) {
    auto pack = load<kSize>(addend + d);
    float sum[kSize];
    for (int i = 0; i < kSize; ++i) sum[i] = to_float(pack.element[i]);
    for (int first = 0; first < K; first += kAtOnce) {
      int r[kAtOnce];
      Elements<T, kSize> row[kAtOnce];
      for (int j = 0; j < kAtOnce; ++j) {
        r[j] = first + j < K ? slot_row[first + j] : -1;
        if (r[j] >= 0) row[j] = load<kSize>(row_RD[r[j]] + d);
      }
      for (int j = 0; j < kAtOnce; ++j) {
        if (r[j] < 0) continue;
        for (int i = 0; i < kSize; ++i) sum[i] += to_float(row[j].element[i]);
      }
    }
    for (int i = 0; i < kSize; ++i) pack.element[i] = from_float<T>(sum[i]);
    store<kSize>(out + d, pack);
  }
}

// Numbers that travel with the rows, one a slot. Not defined: none do.
struct Weights {
  Tensor of_row_R, of_slot_TK;

  float* rows() const { return of_row_R.defined() ? of_row_R.as<float>() : nullptr; }
  template <class T>
  Rows<T> slots() const {
    return of_slot_TK.defined() ? rows_of<T>(of_slot_TK) : Rows<T>{};
  }
};

void copy_to_rows(const char* op, const Tensor& row_RD, const Tensor& x_TD, const Weights& weights,
                  const Tensor& slot_row_TK, Context& ctx) {
  with_element(x_TD.dtype(), [&]<class T>() {
    with_pack<T>(rows_are_packs<T>(row_RD) && rows_are_packs<T>(x_TD), [&]<int kSize>() {
      launch(op, copy_to_rows_kernel<T, kSize>, one_warp_each(x_TD.rows()), ctx, rows_of<T>(row_RD),
             weights.rows(), rows_of<const T>(x_TD), weights.slots<const float>(),
             rows_of<const int>(slot_row_TK), x_TD.rows(), slot_row_TK.dim(1), x_TD.dim(1));
    });
  });
}

void add_rows(const char* op, const Tensor& out_TD, const Tensor& residual_TD, const Tensor& row_RD,
              const Weights& weights, const Tensor& slot_row_TK, Context& ctx) {
  with_element(out_TD.dtype(), [&]<class T>() {
    with_pack<T>(rows_are_packs<T>(out_TD) && rows_are_packs<T>(residual_TD) && rows_are_packs<T>(row_RD),
                 [&]<int kSize>() {
                   launch(op, add_rows_kernel<T, kSize>, one_warp_each(out_TD.rows()), ctx, rows_of<T>(out_TD),
                          weights.slots<float>(), rows_of<const T>(residual_TD), rows_of<const T>(row_RD),
                          weights.rows(), rows_of<const int>(slot_row_TK), out_TD.rows(), slot_row_TK.dim(1),
                          out_TD.dim(1));
                 });
  });
}

}  // namespace

void moe_permutation(Tensor count_E, Tensor offset_Ep, Tensor slot_row_TK, Tensor expert_TK, Context& ctx) {
  SY_CHECK(expert_TK.contiguous() && slot_row_TK.contiguous(), "slots are walked as one run of elements");
  const std::int64_t n_slots = expert_TK.numel(), n_experts = count_E.rows();
  const std::int64_t n_blocks = ceil_div(n_slots, kSlotsABlock);
  const std::size_t counter_bytes = static_cast<std::size_t>(n_experts) * sizeof(int);
  const unsigned threads = kTokenWarps * kWarp;
  const int* expert = expert_TK.as<int>();
  ScratchScope scope(ctx.scratch);
  const Tensor count_EB = ctx.scratch.take(Shape{n_experts, n_blocks}, DType::i32);
  launch("moe_permutation: count", count_kernel, {blocks(n_blocks), threads, counter_bytes}, ctx,
         rows_of<int>(count_EB), expert, n_slots, n_experts);
  launch("moe_permutation: before", before_kernel, one_warp_each(n_experts), ctx, rows_of<int>(count_EB),
         count_E.as<int>(), n_blocks, n_experts);
  launch("moe_permutation: offset", offset_kernel, {1, kWarp}, ctx, offset_Ep.as<int>(), count_E.as<int>(),
         n_experts);
  launch("moe_permutation: place", place_kernel, {blocks(n_blocks), threads, kTokenWarps * counter_bytes}, ctx,
         slot_row_TK.as<int>(), expert, offset_Ep.as<int>(), rows_of<const int>(count_EB), n_slots, n_experts);
}

void keep_experts(Tensor expert_TK, std::int64_t first, std::int64_t n, Context& ctx) {
  launch("keep_experts", keep_experts_kernel, one_thread_each(expert_TK.numel()), ctx, expert_TK.as<int>(),
         expert_TK.numel(), first, n);
}

void limit_rows(Tensor offset_Ep, Tensor slot_row_TK, Tensor need_1, std::int64_t room, Context& ctx) {
  launch("limit_rows: offsets", limit_offsets_kernel, {1, kBlockThreads}, ctx, offset_Ep.as<int>(),
         need_1.as<int>(), offset_Ep.rows() - 1, room);
  launch("limit_rows: slots", free_slots_kernel, one_thread_each(slot_row_TK.numel()), ctx,
         slot_row_TK.as<int>(), slot_row_TK.numel(), room);
}

void moe_dispatch_forward(Tensor row_RD, Tensor weight_R, Tensor x_TD, Tensor weight_TK, Tensor slot_row_TK,
                          Context& ctx) {
  copy_to_rows("moe_dispatch_forward", row_RD, x_TD, {weight_R, weight_TK}, slot_row_TK, ctx);
}

void moe_dispatch_backward(Tensor dx_TD, Tensor dweight_TK, Tensor drow_RD, Tensor dweight_R,
                           Tensor slot_row_TK, Context& ctx) {
  add_rows("moe_dispatch_backward", dx_TD, dx_TD, drow_RD, {dweight_R, dweight_TK}, slot_row_TK, ctx);
}

void moe_combine_forward(Tensor out_TD, Tensor residual_TD, Tensor row_RD, Tensor slot_row_TK, Context& ctx) {
  add_rows("moe_combine_forward", out_TD, residual_TD, row_RD, {}, slot_row_TK, ctx);
}

void moe_combine_backward(Tensor drow_RD, Tensor dout_TD, Tensor slot_row_TK, Context& ctx) {
  copy_to_rows("moe_combine_backward", drow_RD, dout_TD, {}, slot_row_TK, ctx);
}

}  // namespace switchyard::ops::cuda
