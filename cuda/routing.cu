#include "ops/routing.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "device.h"
#include "elements.h"
#include "error.h"
#include "launch.h"
#include "reduce.h"
#include "warp_per_row.h"

// Legend: T tokens of B sequences, E experts, K slots a token, X runs of tokens.

namespace switchyard::ops::cuda {

// What is K numbers a token is done by a thread, what is E numbers by a warp. The sums over a sequence are cut
// into runs of tokens, a block each, so that few long sequences fill the device as well as many short ones; the
// partial sums are added in token order: the same bits in every run. All in f32 but for the sums over tokens,
// which are f64, and experts, counts and tokens, i32. dprob_BE may lie on the host.

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
  const float divisor = normalise ? sum : 1;  // see src/ops/routing.cpp
  for (int k = 0; k < K; ++k) weight_TK[t][k] = expert[k] >= 0 ? chosen[k] / divisor * scale : 0;
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
__global__ void __launch_bounds__(kBlockThreads)
    run_sums_kernel(Rows<int> count_XE, Rows<double> prob_sum_XE, double* prob2_sum_X, double* lse2_sum_X,
                    Rows<const int> expert_TK, Rows<const float> prob_TE, const float* lse_T,
                    const int* token_T, int n_experts, int K, int seq_len, int run_tokens, int runs) {
  constexpr int kAtOnce = 8;  // tokens whose loads are under way together
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  double* const prob2_sum_of_thread = static_cast<double*>(dynamic_shared());
  int* const count_E = reinterpret_cast<int*>(prob2_sum_of_thread + threads);
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
  double prob2_sum = 0;  // of the thread's experts
  for (int e = thread; e < n_experts; e += threads) {
    double sum = 0;
    for (int i = 0; i < tokens; i += kAtOnce) {
      float prob[kAtOnce];
      for (int j = 0; j < kAtOnce; ++j)
        prob[j] = i + j < tokens && token[i + j] >= 0 ? prob_TE[first + i + j][e] : 0;
      for (int j = 0; j < kAtOnce; ++j) {
        const auto p = static_cast<double>(prob[j]);
        sum += p;
        prob2_sum += p * p;
      }
    }
    prob_sum_XE[x][e] = sum;
    count_XE[x][e] = count_E[e];
  }
  prob2_sum_of_thread[thread] = prob2_sum;
  __syncthreads();
  if (thread < kWarp) {
    const double prob2 = sum_over_lanes(threads, [&](int i) { return prob2_sum_of_thread[i]; });
    if (thread == 0) prob2_sum_X[x] = prob2;
    const double sum = sum_over_lanes(tokens, [&](int i) {
      const auto lse = static_cast<double>(token[i] >= 0 ? lse_T[first + i] : 0);
      return lse * lse;
    });
    if (thread == 0) lse2_sum_X[x] = sum;
  }
}

// One thread an expert of a sequence, the first of which has the sequence's sums of squares, too.
__global__ void __launch_bounds__(kBlockThreads)
    sequence_sums_kernel(Rows<int> count_BE, Rows<double> prob_sum_BE, double* prob2_sum_B, double* lse2_sum_B,
                         Rows<const int> count_XE, Rows<const double> prob_sum_XE, const double* prob2_sum_X,
                         const double* lse2_sum_X, std::int64_t n_sums, int n_experts, int runs) {
  const std::int64_t i = index_of_thread();
  if (i >= n_sums) return;
  const std::int64_t b = i / n_experts, e = i % n_experts;
  int count = 0;
  double prob_sum = 0, prob2_sum = 0, lse2_sum = 0;
  for (std::int64_t x = b * runs; x < (b + 1) * runs; ++x) {
    count += count_XE[x][e];
    prob_sum += prob_sum_XE[x][e];
    if (e == 0) prob2_sum += prob2_sum_X[x];
    if (e == 0) lse2_sum += lse2_sum_X[x];
  }
  count_BE[b][e] = count;
  prob_sum_BE[b][e] = prob_sum;
  if (e == 0) prob2_sum_B[b] = prob2_sum;
  if (e == 0) lse2_sum_B[b] = lse2_sum;
}

__global__ void __launch_bounds__(kTokenWarps* kWarp)
    add_sequence_gradient_kernel(Rows<float> dprob_TE, Rows<const double> dprob_BE, Rows<const float> prob_TE,
                                 float twice_dprob2, const int* token_T, std::int64_t n_tokens, int n_experts,
                                 std::int64_t seq_len) {
  const std::int64_t t = index_of_warp();
  if (t >= n_tokens || token_T[t] < 0) return;
  const double* const from = dprob_BE[t / seq_len];
  float* const dprob = dprob_TE[t];
  for (int e = lane_of_warp(); e < n_experts; e += kWarp) dprob[e] += static_cast<float>(from[e]);
  if (twice_dprob2 == 0) return;
  const float* const prob = prob_TE[t];
  for (int e = lane_of_warp(); e < n_experts; e += kWarp) dprob[e] += twice_dprob2 * prob[e];
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

void routing_sums(Tensor count_BE, Tensor prob_sum_BE, Tensor prob2_sum_B, Tensor lse2_sum_B, Tensor expert_TK,
                  Tensor prob_TE, Tensor lse_T, Tensor token_T, Context& ctx) {
  const std::int64_t B = count_BE.rows(), E = count_BE.dim(1), K = expert_TK.dim(1),
                     seq_len = token_T.rows() / B;
  constexpr std::int64_t kFewestTokens = 64, kMostRuns = 128;
  const std::int64_t run_tokens = std::max(kFewestTokens, ceil_div(seq_len, kMostRuns));
  const std::int64_t runs = ceil_div(seq_len, run_tokens);
  const auto threads = static_cast<unsigned>(std::min(ceil_div(E, kWarp) * kWarp, std::int64_t{kBlockThreads}));
  ScratchScope scope(ctx.scratch);
  const Tensor count_XE = ctx.scratch.take(Shape{B * runs, E}, DType::i32);
  const Tensor prob_sum_XE = ctx.scratch.take(Shape{B * runs, E}, DType::f64);
  const Tensor prob2_sum_X = ctx.scratch.take(Shape{B * runs}, DType::f64);
  const Tensor lse2_sum_X = ctx.scratch.take(Shape{B * runs}, DType::f64);
  launch("routing_sums: runs", run_sums_kernel,
         {blocks(B * runs), threads, threads * sizeof(double) + static_cast<std::size_t>(E) * sizeof(int)}, ctx,
         rows_of<int>(count_XE), rows_of<double>(prob_sum_XE), prob2_sum_X.as<double>(),
         lse2_sum_X.as<double>(), rows_of<const int>(expert_TK), rows_of<const float>(prob_TE),
         lse_T.as<float>(), token_T.as<int>(), E, K, seq_len, run_tokens, runs);
  launch("routing_sums: sequences", sequence_sums_kernel, one_thread_each(B * E), ctx, rows_of<int>(count_BE),
         rows_of<double>(prob_sum_BE), prob2_sum_B.as<double>(), lse2_sum_B.as<double>(),
         rows_of<const int>(count_XE), rows_of<const double>(prob_sum_XE), prob2_sum_X.as<double>(),
         lse2_sum_X.as<double>(), B * E, E, runs);
}

void add_sequence_gradient(Tensor dprob_TE, Tensor dprob_BE, Tensor prob_TE, double dprob2, Tensor token_T,
                           Context& ctx) {
  ScratchScope scope(ctx.scratch);
  launch("add_sequence_gradient", add_sequence_gradient_kernel, one_warp_each(dprob_TE.rows()), ctx,
         rows_of<float>(dprob_TE), rows_of<const double>(on_device(dprob_BE, ctx)),
         rows_of<const float>(prob_TE), 2 * dprob2, token_T.as<int>(), dprob_TE.rows(), dprob_TE.dim(1),
         dprob_TE.rows() / dprob_BE.rows());
}

void z_loss_backward(Tensor dlogit_TE, Tensor prob_TE, Tensor lse_T, Tensor token_T, double dz, Context& ctx) {
  launch("z_loss_backward", z_loss_backward_kernel, one_warp_each(dlogit_TE.rows()), ctx,
         rows_of<float>(dlogit_TE), rows_of<const float>(prob_TE), lse_T.as<float>(), token_T.as<int>(),
         dlogit_TE.rows(), dlogit_TE.dim(1), 2 * dz);
}

// Legend: T tokens, E experts, N bins.

// A block counts a stretch of tokens for as many experts as 32 bytes of scores have, what memory moves at
// least: its bins fit into shared memory. It adds the bins that are not empty to the result. All are whole
// numbers, which a double adds exactly in any order: the bits do not depend on the order of the blocks. Scores
// f32, token_T i32. count_EN, f64, may lie on the host; then the device is waited for.

namespace {

constexpr int kSide = static_cast<int>(kGapBins), kBins = 2 * kSide;
constexpr int kExperts = 8;  // of a block

// Where each bin of a side begins (ops/routing.h), rounded up to a float: no float lies between the two, so
// that a float is on the same side of both.
struct Borders {
  float of_bin[kSide];
};
Borders float_borders() {
  Borders borders;
  for (int i = 0; i < kSide; ++i) {
    const double exact = gap_borders()[static_cast<std::size_t>(i)];
    const auto nearest = static_cast<float>(exact);
    borders.of_bin[i] = static_cast<double>(nearest) < exact
                            ? std::nextafter(nearest, std::numeric_limits<float>::infinity())
                            : nearest;
  }
  return borders;
}

// The bin of a gap, in ascending order of the gaps. A NaN goes where 0 goes. A logarithm, which need not be
// exact, says where to look.
__device__ __forceinline__ int bin_of(float gap, const Borders& borders) {
  constexpr float kFirstLog2 = -19.93156857f, kBinsAnOctave = 511 / 26.57542476f;  // log2 of 1e-6 and of 1e8
  const float distance = fabsf(gap);
  const float guess = 1 + (log2f(distance) - kFirstLog2) * kBinsAnOctave;
  int bin = static_cast<int>(fminf(fmaxf(guess, 0.0f), kSide - 1.0f));
  while (bin < kSide - 1 && distance >= borders.of_bin[bin + 1]) ++bin;
  while (bin > 0 && !(distance >= borders.of_bin[bin])) --bin;
  return gap < 0 ? kSide - 1 - bin : kSide + bin;
}

// What is counted, in float32 as on the CPU.
struct ScoreGap {
  Rows<const float> score_TE;
  const float* value_E;
  __device__ float operator()(std::int64_t t, int e) const { return score_TE[t][e] - value_E[e]; }
};
struct CutoffGap {
  Rows<const float> choice_TE;
  const float* cutoff_T;
  __device__ float operator()(std::int64_t t, int e) const { return cutoff_T[t] - choice_TE[t][e]; }
};

struct BlockBins {
  Borders borders;
  int count[kExperts][kBins];
};

// Block (x, y): the x-th stretch of tokens, the y-th kExperts experts. Neighbouring threads have neighbouring
// experts.
template <class Gap>
__global__ void __launch_bounds__(kBlockThreads)
    histogram_kernel(double* count_EN, Gap gap, const int* token_T, Borders borders, std::int64_t n_tokens,
                     std::int64_t tokens_a_block, int n_experts) {
  auto& shared = static_shared<BlockBins>();
  const int thread = static_cast<int>(threadIdx.x), first_expert = static_cast<int>(blockIdx.y) * kExperts;
  for (int i = thread; i < kSide; i += kBlockThreads) shared.borders.of_bin[i] = borders.of_bin[i];
  for (int i = thread; i < kExperts * kBins; i += kBlockThreads) shared.count[i / kBins][i % kBins] = 0;
  __syncthreads();
  const int expert = thread % kExperts;
  const std::int64_t first = std::int64_t{blockIdx.x} * tokens_a_block;
  const std::int64_t last = first + tokens_a_block < n_tokens ? first + tokens_a_block : n_tokens;
  if (first_expert + expert < n_experts) {
    for (std::int64_t t = first + thread / kExperts; t < last; t += kBlockThreads / kExperts) {
      if (token_T[t] < 0) continue;
      atomicAdd(&shared.count[expert][bin_of(gap(t, first_expert + expert), shared.borders)], 1);
    }
  }
  __syncthreads();
  const int experts = n_experts - first_expert < kExperts ? n_experts - first_expert : kExperts;
  for (int i = thread; i < experts * kBins; i += kBlockThreads) {
    if (const int count = shared.count[i / kBins][i % kBins]; count > 0)
      atomicAdd(&count_EN[std::int64_t{first_expert} * kBins + i], static_cast<double>(count));
  }
}

template <class Gap>
void histogram(const char* op, const Tensor& count_EN, const Tensor& token_T, const Gap& gap, Context& ctx) {
  const std::int64_t n_experts = count_EN.rows(), n_tokens = token_T.rows();
  const std::int64_t expert_blocks = ceil_div(n_experts, kExperts);
  // Enough blocks for a large device, and of each block enough tokens that its bins are worth their way.
  constexpr std::int64_t kBlocks = 528, kFewestTokens = 512;
  const std::int64_t tokens_a_block = std::max(kFewestTokens, ceil_div(n_tokens * expert_blocks, kBlocks));
  static const Borders borders = float_borders();
  ScratchScope scope(ctx.scratch);
  const Tensor buffer_EN = device_buffer_for(count_EN, ctx);
  SY_CUDA(cudaMemsetAsync(buffer_EN.raw(), 0, static_cast<std::size_t>(buffer_EN.nbytes()), stream_of(ctx)));
  launch(op, histogram_kernel<Gap>,
         {{blocks(ceil_div(n_tokens, tokens_a_block)), static_cast<unsigned>(expert_blocks)}, kBlockThreads},
         ctx, buffer_EN.as<double>(), gap, token_T.as<int>(), borders, n_tokens, tokens_a_block, n_experts);
  copy_back(count_EN, buffer_EN);
}

}  // namespace

void score_gap_histogram(Tensor count_EN, Tensor score_TE, Tensor value_E, Tensor token_T, Context& ctx) {
  histogram("score_gap_histogram", count_EN, token_T,
            ScoreGap{rows_of<const float>(score_TE), value_E.as<float>()}, ctx);
}

void cutoff_gap_histogram(Tensor count_EN, Tensor choice_TE, Tensor cutoff_T, Tensor token_T, Context& ctx) {
  histogram("cutoff_gap_histogram", count_EN, token_T,
            CutoffGap{rows_of<const float>(choice_TE), cutoff_T.as<float>()}, ctx);
}

// Legend: L layers with a router, B sequences, E experts.

// A few thousand numbers: what counts is that no host waits for them. A block has one sequence of one layer;
// what blocks add to the losses is added up by one more block, in their order. All in f64 but the counts.

namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    add_counts_kernel(double* count_LE, const int* count_LBE, std::int64_t size_LE, int B, int E) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= size_LE) return;
  const int* const count = count_LBE + i / E * B * E + i % E;
  double sum = count_LE[i];
  for (int b = 0; b < B; ++b) sum += count[b * E];
  count_LE[i] = sum;
}

struct Sums {
  const int *count_LBE, *tokens_B;
  const double *prob_sum_LBE, *prob2_sum_LB, *lse2_sum_LB, *count_LE;
  int L, B, E;
};

// Of an expert over layers [first, end), all sequences.
__device__ __forceinline__ double counted(const Sums& sums, int e, int first, int end) {
  double sum = 0;
  for (std::int64_t lb = std::int64_t{first} * sums.B; lb < std::int64_t{end} * sums.B; ++lb)
    sum += sums.count_LBE[lb * sums.E + e];
  return sum;
}

__device__ __forceinline__ double factor_of(const Sums& sums, const BalanceLoss& loss, int l, int b, int e,
                                            double micro_tokens) {
  const double tokens = sums.tokens_B[b], layers = sums.L, experts = sums.E;
  const auto all_tokens = static_cast<double>(loss.n_tokens), slots = static_cast<double>(loss.n_slots);
  const double per_layer = loss.balance_coef / layers;
  if (loss.balance_coef == 0 || tokens == 0) return 0;
  switch (loss.scope) {
    case BalanceScope::layer:
      return per_layer * experts * counted(sums, e, l, l + 1) / (slots * micro_tokens) / all_tokens;
    case BalanceScope::sequence: {
      const double count = sums.count_LBE[(std::int64_t{l} * sums.B + b) * sums.E + e];
      return per_layer * experts * count / (slots * tokens) / (tokens * static_cast<double>(loss.n_sequences));
    }
    case BalanceScope::global_batch:
      return per_layer * experts * sums.count_LE[std::int64_t{l} * sums.E + e] / (slots * all_tokens) /
             all_tokens;
    case BalanceScope::model:
      return loss.balance_coef * experts * counted(sums, e, 0, sums.L) / (layers * micro_tokens) /
             (layers * all_tokens);
  }
  return 0;
}

// value_LB3[l, b] = what the sequence adds to the three losses.
__global__ void __launch_bounds__(kThreads)
    factor_kernel(double* dprob_LBE, double* value_LB3, Sums sums, BalanceLoss loss) {
  const auto lb = static_cast<int>(blockIdx.x);
  const int l = lb / sums.B, b = lb % sums.B;
  double micro_tokens = 0, value = 0, of_means = 0;
  const double tokens = sums.tokens_B[b],
               variance_factor = loss.variance_coef / sums.L / static_cast<double>(loss.n_tokens);
  for (int other = 0; other < sums.B; ++other) micro_tokens += sums.tokens_B[other];
  for (int e = static_cast<int>(threadIdx.x); e < sums.E; e += kThreads) {
    const std::int64_t i = std::int64_t{lb} * sums.E + e;
    const double factor = factor_of(sums, loss, l, b, e, micro_tokens);
    const double sum = sums.prob_sum_LBE[i], of_mean = tokens > 0 ? variance_factor * sum / tokens : 0;
    dprob_LBE[i] = factor + 2 * of_mean;
    value += factor * sum;
    of_means += of_mean * sum;
  }
  value = reduce_block<Sum, kThreads>(value);
  of_means = reduce_block<Sum, kThreads>(of_means);
  if (threadIdx.x != 0) return;
  value_LB3[3 * lb] = value;
  value_LB3[3 * lb + 2] = of_means - variance_factor * sums.prob2_sum_LB[lb];
  value_LB3[3 * lb + 1] = loss.z_coef / sums.L / static_cast<double>(loss.n_tokens) * sums.lse2_sum_LB[lb];
}

// Thread i adds up loss i.
__global__ void __launch_bounds__(kWarp) add_values_kernel(double* value_3, const double* value_LB3, int n) {
  const auto i = static_cast<int>(threadIdx.x);
  if (i >= 3) return;
  double sum = value_3[i];
  for (int lb = 0; lb < n; ++lb) sum += value_LB3[3 * lb + i];
  value_3[i] = sum;
}

}  // namespace

void add_counts(Tensor count_LE, Tensor count_LBE, Context& ctx) {
  launch("add_counts", add_counts_kernel, {blocks(ceil_div(count_LE.numel(), kThreads)), kThreads}, ctx,
         count_LE.as<double>(), count_LBE.as<int>(), count_LE.numel(), count_LBE.dim(1), count_LBE.dim(2));
}

void balance_loss(Tensor dprob_LBE, Tensor value_3, Tensor count_LBE, Tensor prob_sum_LBE, Tensor prob2_sum_LB,
                  Tensor lse2_sum_LB, Tensor tokens_B, Tensor count_LE, const BalanceLoss& loss, Context& ctx) {
  const std::int64_t L = count_LBE.dim(0), B = count_LBE.dim(1), E = count_LBE.dim(2);
  ScratchScope scope(ctx.scratch);
  const Tensor value_LB3 = ctx.scratch.take(Shape{L * B, 3}, DType::f64);
  const Sums sums{.count_LBE = count_LBE.as<int>(),
                  .tokens_B = tokens_B.as<int>(),
                  .prob_sum_LBE = prob_sum_LBE.as<double>(),
                  .prob2_sum_LB = prob2_sum_LB.as<double>(),
                  .lse2_sum_LB = lse2_sum_LB.as<double>(),
                  .count_LE = count_LE.defined() ? count_LE.as<double>() : nullptr,
                  .L = static_cast<int>(L),
                  .B = static_cast<int>(B),
                  .E = static_cast<int>(E)};
  launch("balance_loss", factor_kernel, {blocks(L * B), kThreads}, ctx, dprob_LBE.as<double>(),
         value_LB3.as<double>(), sums, loss);
  launch("balance_loss: values", add_values_kernel, {1, kWarp}, ctx, value_3.as<double>(),
         value_LB3.as<double>(), L * B);
}

}  // namespace switchyard::ops::cuda
