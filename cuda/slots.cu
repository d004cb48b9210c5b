// What is K numbers a token is done by a thread, in slot order as on the CPU; what is E numbers by a warp. All
// in f32, expert_TK and count_T i32.
#include "ops/slots.h"

#include <limits>

#include "elements.h"
#include "warp_per_row.h"

// Legend: T tokens, E experts, K slots a token.

namespace switchyard::ops::cuda {

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

}  // namespace switchyard::ops::cuda
