// One warp a token: it reads the token's scores from memory once, then from the L1 cache, so that any number of
// experts fits. Sums are in float32. top_k draws one maximum a slot instead of keeping a sorted list: of each
// lane's scores only the largest that is left takes part, and only the lane that won looks through its own
// again. All in f32, expert_TK and token_T i32.
#include "ops/topk.h"

#include <limits>

#include "elements.h"
#include "warp_per_row.h"

// Legend: T tokens, E experts, K slots a token.

namespace switchyard::ops::cuda {

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

}  // namespace

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

}  // namespace switchyard::ops::cuda
