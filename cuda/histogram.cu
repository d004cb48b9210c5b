// A block counts a stretch of tokens for as many experts as 32 bytes of scores have, what memory moves at
// least: its bins fit into shared memory. It adds the bins that are not empty to the result. All are whole
// numbers, which a double adds exactly in any order: the bits do not depend on the order of the blocks. Scores
// f32, token_T i32. count_EN, f64, may lie on the host; then the device is waited for.
#include "ops/histogram.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "elements.h"
#include "error.h"
#include "staging.h"
#include "warp_per_row.h"

// Legend: T tokens, E experts, N bins.

namespace switchyard::ops::cuda {

namespace {

constexpr int kSide = static_cast<int>(kGapBins), kBins = 2 * kSide;
constexpr int kExperts = 8;  // of a block

// Where each bin of a side begins (ops/histogram.h), rounded up to a float: no float lies between the two, so
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

}  // namespace switchyard::ops::cuda
