// The permutation of ops/moe.h puts an expert's slots side by side, in order of position. A block an expert
// then finds the weight of the last slot that stays, byte by byte from the top (a radix selection: four counts
// instead of a sort), and drops what is below it and, of what equals it, the last ones. All decisions come from
// whole numbers. Weights f32, experts and tokens i32. expert_TK is contiguous and holds no expert that is not
// there.
#include "ops/capacity.h"

#include <limits>

#include "elements.h"
#include "error.h"
#include "ops/moe.h"
#include "staging.h"
#include "warp_per_row.h"

// Legend: T tokens, K slots a token, E experts, R rows: the slots that are not free, sorted by expert.

namespace switchyard::ops::cuda {

namespace {

constexpr int kThreads = 1024, kWarps = kThreads / kWarp, kDigits = 256;

// n_real: tokens that are not padding. By one block.
__global__ void __launch_bounds__(kThreads)
    count_tokens_kernel(int* n_real, const int* token_T, std::int64_t n_tokens) {
  int count = 0;
  for (std::int64_t t = threadIdx.x; t < n_tokens; t += kThreads) count += token_T[t] >= 0;
  count = reduce_block<Sum, kThreads>(count);
  if (threadIdx.x == 0) *n_real = count;
}

// Copies the slots to the kept ones, and to each expert's rows what decides: the weight's rank, and the slot.
// A NaN, which has no place in an order, is as light as minus infinity.
__global__ void __launch_bounds__(kBlockThreads)
    rows_kernel(unsigned* rank_R, int* slot_R, Rows<int> kept_expert_TK, Rows<float> kept_weight_TK,
                const int* slot_row_S, Rows<const int> expert_TK, Rows<const float> weight_TK,
                std::int64_t n_slots, int K) {
  const std::int64_t slot = index_of_thread();
  if (slot >= n_slots) return;
  const std::int64_t t = slot / K, k = slot % K;
  const float weight = weight_TK[t][k];
  kept_expert_TK[t][k] = expert_TK[t][k];
  kept_weight_TK[t][k] = weight;
  if (const int r = slot_row_S[slot]; r >= 0) {
    rank_R[r] = ordered_bits(weight == weight ? weight : -std::numeric_limits<float>::infinity());
    slot_R[r] = static_cast<int>(slot);
  }
}

struct Selection {
  int count[kDigits];      // of the digit in hand
  int digit, still;        // the one that is found, and how many are wanted among the rows that have it
  int equal_warp[kWarps];  // of each warp, its rows of the weight that is found
};

// The wanted-th largest of n ranks, 1 <= wanted <= n; wanted becomes its place among the ranks equal to it.
__device__ unsigned nth_largest(Selection& shared, const unsigned* rank, int n, int& wanted) {
  const int thread = static_cast<int>(threadIdx.x);
  unsigned found = 0, mask = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    if (thread < kDigits) shared.count[thread] = 0;
    __syncthreads();
    for (int i = thread; i < n; i += kThreads) {
      if ((rank[i] & mask) == found) atomicAdd(&shared.count[rank[i] >> shift & (kDigits - 1)], 1);
    }
    __syncthreads();
    if (thread < kWarp) {  // lane l has the 8 digits down from 255 - 8 l
      constexpr int kOfLane = kDigits / kWarp;
      const int highest = kDigits - 1 - thread * kOfLane;
      int sum = 0;
      for (int d = 0; d < kOfLane; ++d) sum += shared.count[highest - d];
      int above = prefix_sum_warp(sum) - sum;
      for (int d = 0; d < kOfLane; ++d) {
        const int count = shared.count[highest - d];
        if (above < wanted && wanted <= above + count) {
          shared.digit = highest - d;
          shared.still = wanted - above;
        }
        above += count;
      }
    }
    __syncthreads();
    found |= static_cast<unsigned>(shared.digit) << shift;
    mask |= 0xffu << shift;
    wanted = shared.still;
  }
  return found;
}

// A block an expert.
__global__ void __launch_bounds__(kThreads)
    drop_kernel(Rows<int> kept_expert_TK, Rows<float> kept_weight_TK, int* n_dropped, const unsigned* rank_R,
                const int* slot_R, const int* offset_Ep, const int* n_real, double factor, int K) {
  auto& shared = static_shared<Selection>();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const int first = offset_Ep[blockIdx.x], n = offset_Ep[blockIdx.x + 1] - first;
  // The small step down undoes the rounding of a product that is a whole number in decimals (1.1 * 10).
  const double exact = factor * static_cast<double>(std::int64_t{*n_real} * K) / gridDim.x;
  const double most = ceil(exact * (1 - 1e-12));
  if (most >= n) return;  // the whole block
  const unsigned* const rank = rank_R + first;
  const auto capacity = static_cast<int>(most);
  int wanted = capacity;  // of the slots with the least weight that stays
  const unsigned least = capacity > 0 ? nth_largest(shared, rank, n, wanted) : ~0u;
  int equal_before = 0;
  for (int base = 0; base < n; base += kThreads) {
    const int i = base + thread;
    const bool equal = i < n && rank[i] == least;
    const unsigned equal_lanes = __ballot_sync(kFullWarp, equal);
    if (lane == 0) shared.equal_warp[warp] = __popc(equal_lanes);
    __syncthreads();
    int place = equal_before + __popc(equal_lanes & ((1u << lane) - 1));
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) place += shared.equal_warp[w];
      equal_before += shared.equal_warp[w];
    }
    if (i < n && (rank[i] < least || (equal && place >= wanted))) {
      const int slot = slot_R[first + i];
      kept_expert_TK[slot / K][slot % K] = -1;
      kept_weight_TK[slot / K][slot % K] = 0;
    }
    __syncthreads();  // before the next counts
  }
  if (thread == 0) atomicAdd(n_dropped, n - capacity);
}

}  // namespace

void limit_capacity(Tensor kept_expert_TK, Tensor kept_weight_TK, Tensor dropped_1, Tensor expert_TK,
                    Tensor weight_TK, Tensor token_T, std::int64_t n_experts, double factor, Context& ctx) {
  const std::int64_t n_tokens = expert_TK.rows(), K = expert_TK.dim(1), n_slots = expert_TK.numel();
  ScratchScope scope(ctx.scratch);
  const auto ints = [&](std::int64_t n) { return ctx.scratch.take(Shape{n}, DType::i32); };
  const Tensor count_E = ints(n_experts), offset_Ep = ints(n_experts + 1), rank_R = ints(n_slots),
               slot_R = ints(n_slots), n_real = ints(1);
  const Tensor slot_row_TK = ctx.scratch.take(expert_TK.shape(), DType::i32);
  moe_permutation(count_E, offset_Ep, slot_row_TK, expert_TK, ctx);
  launch("limit_capacity: tokens", count_tokens_kernel, {1, kThreads}, ctx, n_real.as<int>(), token_T.as<int>(),
         n_tokens);
  launch("limit_capacity: rows", rows_kernel, one_thread_each(n_slots), ctx,
         reinterpret_cast<unsigned*>(rank_R.as<int>()), slot_R.as<int>(), rows_of<int>(kept_expert_TK),
         rows_of<float>(kept_weight_TK), slot_row_TK.as<int>(), rows_of<const int>(expert_TK),
         rows_of<const float>(weight_TK), n_slots, K);
  SY_CUDA(cudaMemsetAsync(dropped_1.raw(), 0, static_cast<std::size_t>(dropped_1.nbytes()), stream_of(ctx)));
  launch("limit_capacity: drop", drop_kernel, {blocks(n_experts), kThreads}, ctx, rows_of<int>(kept_expert_TK),
         rows_of<float>(kept_weight_TK), dropped_1.as<int>(), reinterpret_cast<unsigned*>(rank_R.as<int>()),
         slot_R.as<int>(), offset_Ep.as<int>(), n_real.as<int>(), factor, K);
}

}  // namespace switchyard::ops::cuda
