// One warp a token. In the choice by groups each lane has groups of its own, whose neighbours in memory it
// walks in the L1 cache; the groups' sums meet in shared memory. Row sums are in float32. All in f32, expert_TK
// i32.
#include "ops/sigmoid_group.h"

#include <algorithm>
#include <limits>

#include "core/routing.h"
#include "elements.h"
#include "ops/routing.h"
#include "warp_per_row.h"

// Legend: T tokens, E experts, K slots a token, G groups of experts.

namespace switchyard::ops::cuda {

namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

__global__ void __launch_bounds__(kTokenWarps* kWarp)
    sigmoid_forward_kernel(Rows<float> score_TE, Rows<const float> logit_TE, std::int64_t n_tokens,
                           int n_experts) {
  const std::int64_t t = index_of_warp();
  if (t >= n_tokens) return;
  for (int e = lane_of_warp(); e < n_experts; e += kWarp) score_TE[t][e] = 1 / (1 + expf(-logit_TE[t][e]));
}

__global__ void __launch_bounds__(kTokenWarps* kWarp)
    sigmoid_backward_kernel(Rows<float> dlogit_TE, Rows<const float> dscore_TE, Rows<const float> score_TE,
                            std::int64_t n_tokens, int n_experts) {
  const std::int64_t t = index_of_warp();
  if (t >= n_tokens) return;
  for (int e = lane_of_warp(); e < n_experts; e += kWarp) {
    const float score = score_TE[t][e];
    dlogit_TE[t][e] = dscore_TE[t][e] * score * (1 - score);
  }
}

__global__ void __launch_bounds__(kTokenWarps* kWarp)
    sqrt_softplus_forward_kernel(Rows<float> score_TE, Rows<const float> logit_TE, std::int64_t n_tokens,
                                 int n_experts) {
  const std::int64_t t = index_of_warp();
  if (t >= n_tokens) return;
  for (int e = lane_of_warp(); e < n_experts; e += kWarp) {
    const float x = logit_TE[t][e];
    score_TE[t][e] = sqrtf(fmaxf(x, 0) + log1pf(expf(-fabsf(x))));
  }
}

__global__ void __launch_bounds__(kTokenWarps* kWarp)
    sqrt_softplus_backward_kernel(Rows<float> dlogit_TE, Rows<const float> dscore_TE,
                                  Rows<const float> score_TE, std::int64_t n_tokens, int n_experts) {
  const std::int64_t t = index_of_warp();
  if (t >= n_tokens) return;
  for (int e = lane_of_warp(); e < n_experts; e += kWarp) {
    const float score = score_TE[t][e];
    const float slope = score > 0 ? -expm1f(-score * score) / (2 * score) : 0;
    dlogit_TE[t][e] = dscore_TE[t][e] * slope;
  }
}

// The sum of the two largest of value(i), i < n; of a single value, that value.
template <class F>
__device__ __forceinline__ float two_largest(int n, F&& value) {
  float first = kMinusInfinity, second = kMinusInfinity;
  for (int i = 0; i < n; ++i) {
    const float x = value(i);
    second = x > first ? first : (x > second ? x : second);
    first = x > first ? x : first;
  }
  return n > 1 ? first + second : first;
}

struct GroupSums {
  float of_warp[kTokenWarps][kMaxExpertGroups];
};

__global__ void __launch_bounds__(kTokenWarps* kWarp)
    group_choice_kernel(Rows<float> choice_TE, Rows<const float> score_TE, const float* bias_E,
                        std::int64_t n_tokens, int n_experts, int n_group, int topk_group) {
  const std::int64_t t = index_of_warp();
  if (t >= n_tokens) return;
  const int lane = lane_of_warp(), size = n_experts / n_group;
  const float* const score = score_TE[t];
  float* const sum_G = static_shared<GroupSums>().of_warp[threadIdx.x / kWarp];
  for (int g = lane; g < n_group; g += kWarp) {
    const int first = g * size;
    sum_G[g] = two_largest(size, [&](int i) { return score[first + i] + bias_E[first + i]; });
  }
  __syncwarp();
  // A group stays if fewer than topk_group groups beat it; between equals the first one wins.
  unsigned kept[kMaxExpertGroups / kWarp];  // bit l of kept[i]: group 32 i + l
  for (int i = 0; i < static_cast<int>(kMaxExpertGroups) / kWarp; ++i) {
    const int g = i * kWarp + lane;
    int better = 0;
    for (int other = 0; g < n_group && other < n_group; ++other)
      better += sum_G[other] > sum_G[g] || (sum_G[other] == sum_G[g] && other < g);
    kept[i] = __ballot_sync(kFullWarp, better < topk_group);
  }
  for (int e = lane; e < n_experts; e += kWarp) {
    const int g = e / size;
    choice_TE[t][e] = kept[g / kWarp] >> g % kWarp & 1 ? score[e] + bias_E[e] : kMinusInfinity;
  }
}

__global__ void __launch_bounds__(kBlockThreads)
    gather_slots_kernel(Rows<float> chosen_TK, Rows<const float> score_TE, Rows<const int> expert_TK,
                        std::int64_t n_slots, int K) {
  const std::int64_t slot = index_of_thread();
  if (slot >= n_slots) return;
  const std::int64_t t = slot / K, k = slot % K;
  const int expert = expert_TK[t][k];
  chosen_TK[t][k] = expert >= 0 ? score_TE[t][expert] : 0;
}

__device__ __forceinline__ float inverse_sum(const float* score, int n) {
  return 1 / (sum_over_lanes(n, [&](int e) { return score[e]; }) + static_cast<float>(kScoreSumEps));
}

__global__ void __launch_bounds__(kTokenWarps* kWarp)
    row_share_forward_kernel(Rows<float> prob_TE, Rows<const float> score_TE, std::int64_t n_tokens,
                             int n_experts) {
  const std::int64_t t = index_of_warp();
  if (t >= n_tokens) return;
  const float* const score = score_TE[t];
  const float inverse = inverse_sum(score, n_experts);
  for (int e = lane_of_warp(); e < n_experts; e += kWarp) prob_TE[t][e] = score[e] * inverse;
}

__global__ void __launch_bounds__(kTokenWarps* kWarp)
    row_share_backward_kernel(Rows<float> dscore_TE, Rows<const float> dprob_TE, Rows<const float> prob_TE,
                              Rows<const float> score_TE, std::int64_t n_tokens, int n_experts) {
  const std::int64_t t = index_of_warp();
  if (t >= n_tokens) return;
  const float *const dprob = dprob_TE[t], *const prob = prob_TE[t], *const score = score_TE[t];
  const float inverse = inverse_sum(score, n_experts);
  const float mean = sum_over_lanes(n_experts, [&](int e) { return dprob[e] * prob[e]; });
  for (int e = lane_of_warp(); e < n_experts; e += kWarp) dscore_TE[t][e] += (dprob[e] - mean) * inverse;
}

}  // namespace

void sigmoid_forward(Tensor score_TE, Tensor logit_TE, Context& ctx) {
  launch("sigmoid_forward", sigmoid_forward_kernel, one_warp_each(score_TE.rows()), ctx,
         rows_of<float>(score_TE), rows_of<const float>(logit_TE), score_TE.rows(), score_TE.dim(1));
}

void sigmoid_backward(Tensor dlogit_TE, Tensor dscore_TE, Tensor score_TE, Context& ctx) {
  launch("sigmoid_backward", sigmoid_backward_kernel, one_warp_each(score_TE.rows()), ctx,
         rows_of<float>(dlogit_TE), rows_of<const float>(dscore_TE), rows_of<const float>(score_TE),
         score_TE.rows(), score_TE.dim(1));
}

void sqrt_softplus_forward(Tensor score_TE, Tensor logit_TE, Context& ctx) {
  launch("sqrt_softplus_forward", sqrt_softplus_forward_kernel, one_warp_each(score_TE.rows()), ctx,
         rows_of<float>(score_TE), rows_of<const float>(logit_TE), score_TE.rows(), score_TE.dim(1));
}

void sqrt_softplus_backward(Tensor dlogit_TE, Tensor dscore_TE, Tensor score_TE, Context& ctx) {
  launch("sqrt_softplus_backward", sqrt_softplus_backward_kernel, one_warp_each(score_TE.rows()), ctx,
         rows_of<float>(dlogit_TE), rows_of<const float>(dscore_TE), rows_of<const float>(score_TE),
         score_TE.rows(), score_TE.dim(1));
}

void group_choice(Tensor choice_TE, Tensor score_TE, Tensor bias_E, std::int64_t n_group,
                  std::int64_t topk_group, Context& ctx) {
  launch("group_choice", group_choice_kernel, one_warp_each(score_TE.rows()), ctx, rows_of<float>(choice_TE),
         rows_of<const float>(score_TE), bias_E.as<float>(), score_TE.rows(), score_TE.dim(1), n_group,
         topk_group);
}

void gather_slots(Tensor chosen_TK, Tensor score_TE, Tensor expert_TK, Context& ctx) {
  launch("gather_slots", gather_slots_kernel, one_thread_each(expert_TK.numel()), ctx,
         rows_of<float>(chosen_TK), rows_of<const float>(score_TE), rows_of<const int>(expert_TK),
         expert_TK.numel(), expert_TK.dim(1));
}

void row_share_forward(Tensor prob_TE, Tensor score_TE, Context& ctx) {
  launch("row_share_forward", row_share_forward_kernel, one_warp_each(score_TE.rows()), ctx,
         rows_of<float>(prob_TE), rows_of<const float>(score_TE), score_TE.rows(), score_TE.dim(1));
}

void row_share_backward(Tensor dscore_TE, Tensor dprob_TE, Tensor prob_TE, Tensor score_TE, Context& ctx) {
  launch("row_share_backward", row_share_backward_kernel, one_warp_each(score_TE.rows()), ctx,
         rows_of<float>(dscore_TE), rows_of<const float>(dprob_TE), rows_of<const float>(prob_TE),
         rows_of<const float>(score_TE), score_TE.rows(), score_TE.dim(1));
}

}  // namespace switchyard::ops::cuda
