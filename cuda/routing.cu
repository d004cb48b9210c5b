// What is K numbers a token is done by a thread, what is E numbers by a warp. The sums over a sequence are cut
// into runs of tokens, a block each, so that few long sequences fill the device as well as many short ones; the
// partial sums are added in token order: the same bits in every run. All in f32 but for the sums over tokens,
// which are f64, and experts, counts and tokens, i32. dprob_BE may lie on the host.
#include "ops/routing.h"

#include <algorithm>

#include "elements.h"
#include "staging.h"
#include "warp_per_row.h"

// Legend: T tokens of B sequences, E experts, K slots a token, X runs of tokens.

namespace switchyard::ops::cuda {

namespace {

__global__ void __launch_bounds__(kBlockThreads)
    slot_weights_forward_kernel(Rows<float> weight_TK, Rows<const float> chosen_TK, Rows<const int> expert_TK,
                                std::int64_t n_tokens, int K, bool normalise, float scale, float eps) {
  const std::int64_t t = index_of_thread();
  if (t >= n_tokens) return;
  const int* const expert = expert_TK[t];
  const float* const chosen = chosen_TK[t];
  float sum = eps;
  for (int k = 0; k < K; ++k)
    if (expert[k] >= 0) sum += chosen[k];
  const float factor = normalise ? scale / sum : scale;
  for (int k = 0; k < K; ++k) weight_TK[t][k] = expert[k] >= 0 ? chosen[k] * factor : 0;
}

__global__ void __launch_bounds__(kTokenWarps* kWarp)
    slot_weights_backward_kernel(Rows<float> dscore_TE, Rows<const float> dweight_TK,
                                 Rows<const float> weight_TK, Rows<const float> chosen_TK,
                                 Rows<const int> expert_TK, std::int64_t n_tokens, int n_experts, int K,
                                 bool normalise, float scale, float eps) {
  const std::int64_t t = index_of_warp();
  if (t >= n_tokens) return;
  const int* const expert = expert_TK[t];
  const float *const dweight = dweight_TK[t], *const weight = weight_TK[t], *const chosen = chosen_TK[t];
  float* const dscore = dscore_TE[t];
  for (int e = lane_of_warp(); e < n_experts; e += kWarp) dscore[e] = 0;
  float sum = 1, mean = 0;
  if (normalise) {
    sum = eps + sum_over_lanes(K, [&](int k) { return expert[k] >= 0 ? chosen[k] : 0; });
    mean = sum_over_lanes(K, [&](int k) { return expert[k] >= 0 ? dweight[k] * weight[k] : 0; });
  }
  __syncwarp();  // the zeros come first
  for (int k = lane_of_warp(); k < K; k += kWarp)
    if (expert[k] >= 0) dscore[expert[k]] = (scale * dweight[k] - mean) / sum;
}

// A block sums over one run of a sequence's tokens.
__global__ void run_sums_kernel(Rows<int> count_XE, Rows<double> prob_sum_XE, double* lse2_sum_X,
                                Rows<const int> expert_TK, Rows<const float> prob_TE, const float* lse_T,
                                const int* token_T, int n_experts, int K, int seq_len, int run_tokens,
                                int runs) {
  constexpr int kAtOnce = 8;  // tokens whose loads are under way together
  int* const count_E = static_cast<int*>(dynamic_shared());
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const auto x = static_cast<int>(blockIdx.x);
  const std::int64_t begin = std::int64_t{x / runs} * seq_len;
  const std::int64_t first = begin + std::int64_t{x % runs} * run_tokens;
  const auto tokens =
      static_cast<int>(begin + seq_len - first < run_tokens ? begin + seq_len - first : run_tokens);
  const int* const token = token_T + first;

  for (int e = thread; e < n_experts; e += threads) count_E[e] = 0;
  __syncthreads();
  for (int i = thread; i < tokens * K; i += threads) {
    const int expert = expert_TK[first + i / K][i % K];
    if (expert >= 0) atomicAdd(&count_E[expert], 1);  // padding has only free slots
  }
  __syncthreads();
  for (int e = thread; e < n_experts; e += threads) {
    double sum = 0;
    for (int i = 0; i < tokens; i += kAtOnce) {
      float prob[kAtOnce];
      for (int j = 0; j < kAtOnce; ++j)
        prob[j] = i + j < tokens && token[i + j] >= 0 ? prob_TE[first + i + j][e] : 0;
      for (int j = 0; j < kAtOnce; ++j) sum += static_cast<double>(prob[j]);
    }
    prob_sum_XE[x][e] = sum;
    count_XE[x][e] = count_E[e];
  }
  if (thread < kWarp) {
    const double sum = sum_over_lanes(tokens, [&](int i) {
      const auto lse = static_cast<double>(token[i] >= 0 ? lse_T[first + i] : 0);
      return lse * lse;
    });
    if (thread == 0) lse2_sum_X[x] = sum;
  }
}

// One thread an expert of a sequence, the first of which has the sequence's lse, too.
__global__ void __launch_bounds__(kBlockThreads)
    sequence_sums_kernel(Rows<int> count_BE, Rows<double> prob_sum_BE, double* lse2_sum_B,
                         Rows<const int> count_XE, Rows<const double> prob_sum_XE, const double* lse2_sum_X,
                         std::int64_t n_sums, int n_experts, int runs) {
  const std::int64_t i = index_of_thread();
  if (i >= n_sums) return;
  const std::int64_t b = i / n_experts, e = i % n_experts;
  int count = 0;
  double prob_sum = 0, lse2_sum = 0;
  for (std::int64_t x = b * runs; x < (b + 1) * runs; ++x) {
    count += count_XE[x][e];
    prob_sum += prob_sum_XE[x][e];
    if (e == 0) lse2_sum += lse2_sum_X[x];
  }
  count_BE[b][e] = count;
  prob_sum_BE[b][e] = prob_sum;
  if (e == 0) lse2_sum_B[b] = lse2_sum;
}

__global__ void __launch_bounds__(kTokenWarps* kWarp)
    add_sequence_gradient_kernel(Rows<float> dprob_TE, Rows<const double> dprob_BE, const int* token_T,
                                 std::int64_t n_tokens, int n_experts, std::int64_t seq_len) {
  const std::int64_t t = index_of_warp();
  if (t >= n_tokens || token_T[t] < 0) return;
  const double* const from = dprob_BE[t / seq_len];
  float* const dprob = dprob_TE[t];
  for (int e = lane_of_warp(); e < n_experts; e += kWarp) dprob[e] += static_cast<float>(from[e]);
}

__global__ void __launch_bounds__(kTokenWarps* kWarp)
    z_loss_backward_kernel(Rows<float> dlogit_TE, Rows<const float> prob_TE, const float* lse_T,
                           const int* token_T, std::int64_t n_tokens, int n_experts, float twice_dz) {
  const std::int64_t t = index_of_warp();
  if (t >= n_tokens || token_T[t] < 0) return;
  const float scale = twice_dz * lse_T[t];
  const float* const prob = prob_TE[t];
  float* const dlogit = dlogit_TE[t];
  for (int e = lane_of_warp(); e < n_experts; e += kWarp) dlogit[e] += scale * prob[e];
}

}  // namespace

void slot_weights_forward(Tensor weight_TK, Tensor chosen_TK, Tensor expert_TK, const SlotWeighting& weighting,
                          Context& ctx) {
  launch("slot_weights_forward", slot_weights_forward_kernel, one_thread_each(weight_TK.rows()), ctx,
         rows_of<float>(weight_TK), rows_of<const float>(chosen_TK), rows_of<const int>(expert_TK),
         weight_TK.rows(), weight_TK.dim(1), weighting.normalise, weighting.scale, weighting.eps);
}

void slot_weights_backward(Tensor dscore_TE, Tensor dweight_TK, Tensor weight_TK, Tensor chosen_TK,
                           Tensor expert_TK, const SlotWeighting& weighting, Context& ctx) {
  launch("slot_weights_backward", slot_weights_backward_kernel, one_warp_each(dscore_TE.rows()), ctx,
         rows_of<float>(dscore_TE), rows_of<const float>(dweight_TK), rows_of<const float>(weight_TK),
         rows_of<const float>(chosen_TK), rows_of<const int>(expert_TK), dscore_TE.rows(), dscore_TE.dim(1),
         weight_TK.dim(1), weighting.normalise, weighting.scale, weighting.eps);
}

void routing_sums(Tensor count_BE, Tensor prob_sum_BE, Tensor lse2_sum_B, Tensor expert_TK, Tensor prob_TE,
                  Tensor lse_T, Tensor token_T, Context& ctx) {
  const std::int64_t B = count_BE.rows(), E = count_BE.dim(1), K = expert_TK.dim(1),
                     seq_len = token_T.rows() / B;
  constexpr std::int64_t kFewestTokens = 64, kMostRuns = 128;
  const std::int64_t run_tokens = std::max(kFewestTokens, ceil_div(seq_len, kMostRuns));
  const std::int64_t runs = ceil_div(seq_len, run_tokens);
  const auto threads = static_cast<unsigned>(std::min(ceil_div(E, kWarp) * kWarp, std::int64_t{kBlockThreads}));
  ScratchScope scope(ctx.scratch);
  const Tensor count_XE = ctx.scratch.take(Shape{B * runs, E}, DType::i32);
  const Tensor prob_sum_XE = ctx.scratch.take(Shape{B * runs, E}, DType::f64);
  const Tensor lse2_sum_X = ctx.scratch.take(Shape{B * runs}, DType::f64);
  launch("routing_sums: runs", run_sums_kernel,
         {blocks(B * runs), threads, static_cast<std::size_t>(E) * sizeof(int)}, ctx, rows_of<int>(count_XE),
         rows_of<double>(prob_sum_XE), lse2_sum_X.as<double>(), rows_of<const int>(expert_TK),
         rows_of<const float>(prob_TE), lse_T.as<float>(), token_T.as<int>(), E, K, seq_len, run_tokens, runs);
  launch("routing_sums: sequences", sequence_sums_kernel, one_thread_each(B * E), ctx, rows_of<int>(count_BE),
         rows_of<double>(prob_sum_BE), lse2_sum_B.as<double>(), rows_of<const int>(count_XE),
         rows_of<const double>(prob_sum_XE), lse2_sum_X.as<double>(), B * E, E, runs);
}

void add_sequence_gradient(Tensor dprob_TE, Tensor dprob_BE, Tensor token_T, Context& ctx) {
  ScratchScope scope(ctx.scratch);
  launch("add_sequence_gradient", add_sequence_gradient_kernel, one_warp_each(dprob_TE.rows()), ctx,
         rows_of<float>(dprob_TE), rows_of<const double>(on_device(dprob_BE, ctx)), token_T.as<int>(),
         dprob_TE.rows(), dprob_TE.dim(1), dprob_TE.rows() / dprob_BE.rows());
}

void z_loss_backward(Tensor dlogit_TE, Tensor prob_TE, Tensor lse_T, Tensor token_T, double dz, Context& ctx) {
  launch("z_loss_backward", z_loss_backward_kernel, one_warp_each(dlogit_TE.rows()), ctx,
         rows_of<float>(dlogit_TE), rows_of<const float>(prob_TE), lse_T.as<float>(), token_T.as<int>(),
         dlogit_TE.rows(), dlogit_TE.dim(1), 2 * dz);
}

}  // namespace switchyard::ops::cuda
