#include "ops/slots.h"

#include <limits>

#include "device.h"
#include "elements.h"
#include "error.h"
#include "ops/moe.h"
#include "warp_per_row.h"

// Legend: T tokens, E experts, K slots a token.

namespace switchyard::ops::cuda {

// One warp a token: it reads the token's scores from memory once, then from the L1 cache, so that any number of
// experts fits. Sums are in float32. top_k draws one maximum a slot instead of keeping a sorted list: of each
// lane's scores only the largest that is left takes part, and only the lane that won looks through its own
// again. All in f32, expert_TK and token_T i32.

namespace {

__global__ void __launch_bounds__(kTokenWarps* kWarp)
    softmax_forward_kernel(Rows<float> prob_TE, Rows<float> lse_T, Rows<const float> logit_TE,
                           std::int64_t n_tokens, int n_experts) {
  const std::int64_t t = index_of_warp();
  if (t >= n_tokens) return;
  const float* const logit = logit_TE[t];
  float* const prob = prob_TE[t];
  float largest = -std::numeric_limits<float>::infinity();
  for (int e = lane_of_warp(); e < n_experts; e += kWarp) largest = logit[e] > largest ? logit[e] : largest;
  largest = reduce_warp<Max>(largest);
  const float sum = sum_over_lanes(n_experts, [&](int e) { return expf(logit[e] - largest); });
  const float inverse = 1 / sum;
  for (int e = lane_of_warp(); e < n_experts; e += kWarp) prob[e] = expf(logit[e] - largest) * inverse;
  if (lane_of_warp() == 0) *lse_T[t] = largest + logf(sum);
}

__global__ void __launch_bounds__(kTokenWarps* kWarp)
    softmax_backward_kernel(Rows<float> dlogit_TE, Rows<const float> dprob_TE, Rows<const float> prob_TE,
                            std::int64_t n_tokens, int n_experts) {
  const std::int64_t t = index_of_warp();
  if (t >= n_tokens) return;
  const float *const dprob = dprob_TE[t], *const prob = prob_TE[t];
  const float mean = sum_over_lanes(n_experts, [&](int e) { return dprob[e] * prob[e]; });
  for (int e = lane_of_warp(); e < n_experts; e += kWarp) dlogit_TE[t][e] = prob[e] * (dprob[e] - mean);
}

// A score and its expert as one number: larger scores are larger, of equal ones the smaller expert is, and a
// NaN is below every number. Never 0.
using Candidate = std::uint64_t;
__device__ __forceinline__ Candidate candidate_of(float score, int expert) {
  return Candidate{ordered_bits(score)} << 32 | ~static_cast<unsigned>(expert);
}
__device__ __forceinline__ int expert_of(Candidate candidate) {
  return static_cast<int>(~static_cast<unsigned>(candidate));
}

// The largest candidate of this lane's experts below `bound`; 0 where there is none.
__device__ __forceinline__ Candidate largest_below(Candidate bound, const float* score, int n_experts) {
  Candidate largest = 0;
  for (int e = lane_of_warp(); e < n_experts; e += kWarp) {
    const Candidate candidate = candidate_of(score[e], e);
    if (candidate < bound && candidate > largest) largest = candidate;
  }
  return largest;
}

__global__ void __launch_bounds__(kTokenWarps* kWarp)
    top_k_kernel(Rows<int> expert_TK, Rows<float> chosen_TK, Rows<const float> score_TE,
                 Rows<const int> token_T, std::int64_t n_tokens, int n_experts, int K) {
  const std::int64_t t = index_of_warp();
  if (t >= n_tokens) return;
  int* const expert = expert_TK[t];
  float* const chosen = chosen_TK[t];
  if (*token_T[t] < 0) {
    for (int k = lane_of_warp(); k < K; k += kWarp) expert[k] = -1, chosen[k] = 0;
    return;
  }
  const float* const score = score_TE[t];
  Candidate mine = largest_below(~Candidate{0}, score, n_experts);
  for (int k = 0; k < K; ++k) {
    const Candidate best = reduce_warp<Max>(mine);
    if (mine == best) {  // one lane: no two candidates are equal, and K <= E leaves one in each round
      expert[k] = expert_of(best);
      chosen[k] = score[expert_of(best)];
      mine = largest_below(best, score, n_experts);
    }
  }
}

__global__ void __launch_bounds__(kBlockThreads)
    experts_of_tokens_kernel(Rows<int> expert_TK, const float* table_N, Rows<const int> token_T,
                             std::int64_t n_slots, int K) {
  const std::int64_t slot = index_of_thread();
  if (slot >= n_slots) return;
  const std::int64_t t = slot / K, k = slot % K;
  const int token = *token_T[t];
  expert_TK[t][k] = token < 0 ? -1 : static_cast<int>(table_N[std::int64_t{token} * K + k]);
}

__global__ void __launch_bounds__(kTokenWarps* kWarp)
    normalise_logits_forward_kernel(Rows<float> logit_TE, Rows<float> unit_TE, Rows<float> rstd_T,
                                    std::int64_t n_tokens, int n_experts, float scale) {
  const std::int64_t t = index_of_warp();
  if (t >= n_tokens) return;
  float *const logit = logit_TE[t], *const unit = unit_TE[t];
  const float n = static_cast<float>(n_experts);
  const float mean = sum_over_lanes(n_experts, [&](int e) { return logit[e]; }) / n;
  const float variance =
      sum_over_lanes(n_experts, [&](int e) { return (logit[e] - mean) * (logit[e] - mean); }) / n;
  const float rstd = 1 / sqrtf(variance + static_cast<float>(kLogitVarianceEps));
  for (int e = lane_of_warp(); e < n_experts; e += kWarp) {
    const float u = (logit[e] - mean) * rstd;
    unit[e] = u;
    logit[e] = scale * u;
  }
  if (lane_of_warp() == 0) *rstd_T[t] = rstd;
}

__global__ void __launch_bounds__(kTokenWarps* kWarp)
    normalise_logits_backward_kernel(Rows<float> dlogit_TE, Rows<const float> unit_TE, Rows<const float> rstd_T,
                                     std::int64_t n_tokens, int n_experts, float scale) {
  const std::int64_t t = index_of_warp();
  if (t >= n_tokens) return;
  float* const dlogit = dlogit_TE[t];
  const float* const unit = unit_TE[t];
  const float n = static_cast<float>(n_experts);
  const float mean = sum_over_lanes(n_experts, [&](int e) { return dlogit[e]; }) / n;
  const float along = sum_over_lanes(n_experts, [&](int e) { return dlogit[e] * unit[e]; }) / n;
  const float factor = scale * *rstd_T[t];
  for (int e = lane_of_warp(); e < n_experts; e += kWarp)
    dlogit[e] = factor * (dlogit[e] - mean - unit[e] * along);
}

}  // namespace

void experts_of_tokens(Tensor expert_TK, Tensor table_N, Tensor token_T, Context& ctx) {
  launch("experts_of_tokens", experts_of_tokens_kernel, one_thread_each(expert_TK.numel()), ctx,
         rows_of<int>(expert_TK), table_N.as<float>(), rows_of<const int>(token_T), expert_TK.numel(),
         expert_TK.dim(1));
}

void normalise_logits_forward(Tensor logit_TE, Tensor unit_TE, Tensor rstd_T, double scale, Context& ctx) {
  launch("normalise_logits_forward", normalise_logits_forward_kernel, one_warp_each(logit_TE.rows()), ctx,
         rows_of<float>(logit_TE), rows_of<float>(unit_TE), rows_of<float>(rstd_T), logit_TE.rows(),
         logit_TE.dim(1), static_cast<float>(scale));
}

void normalise_logits_backward(Tensor dlogit_TE, Tensor unit_TE, Tensor rstd_T, double scale, Context& ctx) {
  launch("normalise_logits_backward", normalise_logits_backward_kernel, one_warp_each(dlogit_TE.rows()), ctx,
         rows_of<float>(dlogit_TE), rows_of<const float>(unit_TE), rows_of<const float>(rstd_T),
         dlogit_TE.rows(), dlogit_TE.dim(1), static_cast<float>(scale));
}

void softmax_forward(Tensor prob_TE, Tensor lse_T, Tensor logit_TE, Context& ctx) {
  launch("softmax_forward", softmax_forward_kernel, one_warp_each(logit_TE.rows()), ctx,
         rows_of<float>(prob_TE), rows_of<float>(lse_T), rows_of<const float>(logit_TE), logit_TE.rows(),
         logit_TE.dim(1));
}

void softmax_backward(Tensor dlogit_TE, Tensor dprob_TE, Tensor prob_TE, Context& ctx) {
  launch("softmax_backward", softmax_backward_kernel, one_warp_each(prob_TE.rows()), ctx,
         rows_of<float>(dlogit_TE), rows_of<const float>(dprob_TE), rows_of<const float>(prob_TE),
         prob_TE.rows(), prob_TE.dim(1));
}

void top_k(Tensor expert_TK, Tensor chosen_TK, Tensor score_TE, Tensor token_T, Context& ctx) {
  launch("top_k", top_k_kernel, one_warp_each(score_TE.rows()), ctx, rows_of<int>(expert_TK),
         rows_of<float>(chosen_TK), rows_of<const float>(score_TE), rows_of<const int>(token_T),
         score_TE.rows(), score_TE.dim(1), expert_TK.dim(1));
}

// What is K numbers a token is done by a thread, in slot order as on the CPU; what is E numbers by a warp. All
// in f32, expert_TK and count_T i32.

namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// How many of a token's slots stay; a number outside 0 to K is the nearer of the two.
struct UntilSum {
  float p;
  __device__ int operator()(std::int64_t, const float* chosen, int K) const {
    float sum = 0;
    int k = 0;
    while (k < K) {
      sum += chosen[k++];
      if (sum >= p) break;
    }
    return k;
  }
};
struct Count {
  const int* count_T;
  __device__ int operator()(std::int64_t t, const float*, int) const { return count_T[t]; }
};
struct WhileFinite {
  __device__ int operator()(std::int64_t, const float* chosen, int K) const {
    int k = 0;
    while (k < K && chosen[k] != kMinusInfinity) ++k;
    return k;
  }
};

template <class Kept>
__global__ void __launch_bounds__(kBlockThreads)
    keep_kernel(Rows<int> expert_TK, Rows<float> chosen_TK, Kept kept, std::int64_t n_tokens, int K) {
  const std::int64_t t = index_of_thread();
  if (t >= n_tokens) return;
  const int first_free = kept(t, chosen_TK[t], K);
  for (int k = first_free > 0 ? first_free : 0; k < K; ++k) {
    expert_TK[t][k] = -1;
    chosen_TK[t][k] = 0;
  }
}

template <class Kept>
void keep(const char* op, const Tensor& expert_TK, const Tensor& chosen_TK, const Kept& kept, Context& ctx) {
  launch(op, keep_kernel<Kept>, one_thread_each(expert_TK.rows()), ctx, rows_of<int>(expert_TK),
         rows_of<float>(chosen_TK), kept, expert_TK.rows(), expert_TK.dim(1));
}

__global__ void __launch_bounds__(kTokenWarps* kWarp)
    threshold_choice_kernel(Rows<float> choice_TE, Rows<const float> score_TE, const float* threshold_E,
                            std::int64_t n_tokens, int n_experts) {
  const std::int64_t t = index_of_warp();
  if (t >= n_tokens) return;
  for (int e = lane_of_warp(); e < n_experts; e += kWarp) {
    const float score = score_TE[t][e];
    choice_TE[t][e] = score > threshold_E[e] ? score : kMinusInfinity;
  }
}

__global__ void __launch_bounds__(kBlockThreads)
    slot_softmax_forward_kernel(Rows<float> weight_TK, Rows<const float> chosen_TK, Rows<const int> expert_TK,
                                std::int64_t n_tokens, int K, float scale) {
  const std::int64_t t = index_of_thread();
  if (t >= n_tokens) return;
  const int* const expert = expert_TK[t];
  const float* const chosen = chosen_TK[t];
  float* const weight = weight_TK[t];
  float largest = kMinusInfinity, sum = 0;
  for (int k = 0; k < K; ++k)
    if (expert[k] >= 0 && chosen[k] > largest) largest = chosen[k];
  for (int k = 0; k < K; ++k) {
    const float x = expert[k] >= 0 ? expf(chosen[k] - largest) : 0;
    weight[k] = x;
    sum += x;
  }
  const float factor = sum > 0 ? scale / sum : 0;
  for (int k = 0; k < K; ++k) weight[k] *= factor;
}

__global__ void __launch_bounds__(kTokenWarps* kWarp)
    slot_softmax_backward_kernel(Rows<float> dscore_TE, Rows<const float> dweight_TK,
                                 Rows<const float> weight_TK, Rows<const int> expert_TK, std::int64_t n_tokens,
                                 int n_experts, int K, float scale) {
  const std::int64_t t = index_of_warp();
  if (t >= n_tokens) return;
  const int* const expert = expert_TK[t];
  const float *const dweight = dweight_TK[t], *const weight = weight_TK[t];
  float* const dscore = dscore_TE[t];
  for (int e = lane_of_warp(); e < n_experts; e += kWarp) dscore[e] = 0;
  const float mean =
      sum_over_lanes(K, [&](int k) { return expert[k] >= 0 ? dweight[k] * weight[k] : 0; }) / scale;
  __syncwarp();  // the zeros come first
  for (int k = lane_of_warp(); k < K; k += kWarp)
    if (expert[k] >= 0) dscore[expert[k]] = weight[k] * (dweight[k] - mean);
}

}  // namespace

void keep_prefix_sum(Tensor expert_TK, Tensor chosen_TK, double p, Context& ctx) {
  keep("keep_prefix_sum", expert_TK, chosen_TK, UntilSum{static_cast<float>(p)}, ctx);
}

void keep_count(Tensor expert_TK, Tensor chosen_TK, Tensor count_T, Context& ctx) {
  keep("keep_count", expert_TK, chosen_TK, Count{count_T.as<int>()}, ctx);
}

void keep_finite(Tensor expert_TK, Tensor chosen_TK, Context& ctx) {
  keep("keep_finite", expert_TK, chosen_TK, WhileFinite{}, ctx);
}

void threshold_choice(Tensor choice_TE, Tensor score_TE, Tensor threshold_E, Context& ctx) {
  launch("threshold_choice", threshold_choice_kernel, one_warp_each(score_TE.rows()), ctx,
         rows_of<float>(choice_TE), rows_of<const float>(score_TE), threshold_E.as<float>(), score_TE.rows(),
         score_TE.dim(1));
}

void slot_softmax_forward(Tensor weight_TK, Tensor chosen_TK, Tensor expert_TK, double scale, Context& ctx) {
  launch("slot_softmax_forward", slot_softmax_forward_kernel, one_thread_each(expert_TK.rows()), ctx,
         rows_of<float>(weight_TK), rows_of<const float>(chosen_TK), rows_of<const int>(expert_TK),
         expert_TK.rows(), expert_TK.dim(1), scale);
}

void slot_softmax_backward(Tensor dscore_TE, Tensor dweight_TK, Tensor weight_TK, Tensor expert_TK,
                           double scale, Context& ctx) {
  launch("slot_softmax_backward", slot_softmax_backward_kernel, one_warp_each(expert_TK.rows()), ctx,
         rows_of<float>(dscore_TE), rows_of<const float>(dweight_TK), rows_of<const float>(weight_TK),
         rows_of<const int>(expert_TK), expert_TK.rows(), dscore_TE.dim(1), expert_TK.dim(1), scale);
}

// Legend: T tokens, K slots a token, E experts, R rows: the slots that are not free, sorted by expert.

// The permutation of ops/moe.h puts an expert's slots side by side, in order of position. A block an expert
// then finds the weight of the last slot that stays, byte by byte from the top (a radix selection: four counts
// instead of a sort), and drops what is below it and, of what equals it, the last ones. All decisions come from
// whole numbers. Weights f32, experts and tokens i32. expert_TK is contiguous and holds no expert that is not
// there.

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
