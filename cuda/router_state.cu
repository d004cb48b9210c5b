// Once a step, a few numbers for each expert. A warp finds an expert's quantile: each lane counts a stretch of
// its bins, all together say in whose stretch it lies. Counts are whole numbers, so that it is the CPU's bin.
// States are f32; nobody waits.
#include "ops/router_state.h"

#include "elements.h"
#include "for_each_pack.h"
#include "launch.h"
#include "ops/routing.h"
#include "reduce.h"

namespace switchyard::ops::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kSide = static_cast<int>(kGapBins), kBinsALane = 2 * kSide / kWarp;

// Of one side, as gap_borders() has it.
__device__ __forceinline__ double border(int i) {
  return i == 0 ? 0 : 1e-6 * pow(1e8, static_cast<double>(i - 1) / static_cast<double>(kSide - 1));
}

// gap_E = the q quantile of each row of count_EN, total_E = what was counted in it.
__global__ void __launch_bounds__(kThreads)
    quantiles_kernel(double* gap_E, double* total_E, Rows<const double> count_EN, double q, int n_experts) {
  const int e = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  if (e >= n_experts) return;  // the whole warp
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const double* const count = count_EN[e] + lane * kBinsALane;
  double own = 0;
  for (int i = 0; i < kBinsALane; ++i) own += count[i];
  const double up_to = prefix_sum_warp(own);
  const double total = __shfl_sync(kFullWarp, up_to, kWarp - 1), target = q * total;
  double before = up_to - own, gap = 0;
  bool found = false;
  for (int i = 0; i < kBinsALane && !found; ++i) {
    if (count[i] > 0 && before + count[i] >= target) {
      const int bin = lane * kBinsALane + i;
      const double low = bin < kSide ? -border(kSide - bin) : border(bin - kSide);
      const double high = bin < kSide ? -border(kSide - 1 - bin) : border(bin - kSide + 1);
      gap = low + (high - low) * (target - before) / count[i];
      found = true;
    }
    before += count[i];
  }
  const unsigned lanes = __ballot_sync(kFullWarp, found);
  gap = __shfl_sync(kFullWarp, gap, lanes == 0 ? 0 : __ffs(static_cast<int>(lanes)) - 1);
  if (lane > 0) return;
  gap_E[e] = gap;
  total_E[e] = total;
}

struct Quantiles {
  Tensor gap_E, total_E;
};
Quantiles quantiles(const char* op, const Tensor& count_EN, double q, Context& ctx) {
  const std::int64_t E = count_EN.rows();
  const Quantiles result{ctx.scratch.take({E}, DType::f64), ctx.scratch.take({E}, DType::f64)};
  launch(op, quantiles_kernel, {blocks(ceil_div(E, kWarps)), kThreads}, ctx, result.gap_E.as<double>(),
         result.total_E.as<double>(), rows_of<const double>(count_EN), q, E);
  return result;
}

struct FollowQuantile {
  float* value_E;
  const double* gap_E;
  double share;

  __device__ void operator()(std::int64_t, std::int64_t e) const {
    value_E[e] = static_cast<float>(static_cast<double>(value_E[e]) + share * gap_E[e]);
  }
};

// One block.
__global__ void __launch_bounds__(kThreads)
    quantile_bias_kernel(float* bias_E, const double* gap_E, const double* total_E, double ema, int n_experts) {
  double sum = 0, total = 0;
  for (int e = static_cast<int>(threadIdx.x); e < n_experts; e += kThreads) {
    sum += static_cast<double>(bias_E[e]) + gap_E[e];
    total += total_E[e];
  }
  const double mean = reduce_block<Sum, kThreads>(sum) / n_experts;
  if (reduce_block<Sum, kThreads>(total) == 0) return;  // nothing was counted at all
  for (int e = static_cast<int>(threadIdx.x); e < n_experts; e += kThreads) {
    const auto bias = static_cast<double>(bias_E[e]);
    bias_E[e] = static_cast<float>(ema * bias + (1 - ema) * (bias + gap_E[e] - mean));
  }
}

// One block: the counts' mean, in every thread.
__device__ __forceinline__ double mean_of_counts(const double* count_E, int n_experts) {
  double sum = 0;
  for (int e = static_cast<int>(threadIdx.x); e < n_experts; e += kThreads) sum += count_E[e];
  return reduce_block<Sum, kThreads>(sum) / n_experts;
}

__global__ void __launch_bounds__(kThreads)
    balance_bias_kernel(float* bias_E, const double* count_E, float speed, int n_experts) {
  const double mean = mean_of_counts(count_E, n_experts);
  for (int e = static_cast<int>(threadIdx.x); e < n_experts; e += kThreads) {
    if (count_E[e] < mean) bias_E[e] += speed;
    if (count_E[e] > mean) bias_E[e] -= speed;
  }
}

// What moves an expert's bias, less the mean of all experts' moves: Move has of(count, mean), which any thread
// may ask twice, and apply(e, move).
template <class Move>
__global__ void __launch_bounds__(kThreads)
    centred_moves_kernel(Move moves, const double* count_E, int n_experts) {
  const double mean = mean_of_counts(count_E, n_experts);
  if (moves.needs_counts && mean == 0) return;  // nothing was counted at all
  double sum = 0;
  for (int e = static_cast<int>(threadIdx.x); e < n_experts; e += kThreads)
    sum += moves.of(e, count_E[e], mean);
  const double mean_move = reduce_block<Sum, kThreads>(sum) / n_experts;
  for (int e = static_cast<int>(threadIdx.x); e < n_experts; e += kThreads)
    moves.apply(e, count_E[e], mean, mean_move);
}

struct SignMove {
  static constexpr bool needs_counts = false;
  float* bias_E;
  double speed;

  __device__ double of(int, double count, double mean) const {
    return count < mean ? 1 : count > mean ? -1 : 0;
  }
  __device__ void apply(int e, double count, double mean, double mean_move) const {
    bias_E[e] = static_cast<float>(static_cast<double>(bias_E[e]) + speed * (of(e, count, mean) - mean_move));
  }
};

struct SoftMove {
  static constexpr bool needs_counts = true;
  float *bias_E, *momentum_E;
  SoftClamp clamp;

  __device__ double of(int, double count, double mean) const {
    return clamp.speed * tanh(clamp.kappa * (mean - count) / mean);
  }
  __device__ void apply(int e, double count, double mean, double mean_move) const {
    const double move = of(e, count, mean) - mean_move;
    const auto momentum =
        static_cast<float>(clamp.keep * static_cast<double>(momentum_E[e]) + (1 - clamp.keep) * move);
    momentum_E[e] = momentum;
    bias_E[e] = static_cast<float>(static_cast<double>(bias_E[e]) + static_cast<double>(momentum));
  }
};

struct LoadMove {
  static constexpr bool needs_counts = true;
  float *bias_E, *load_E;
  double decay, strength;

  __device__ float load(int e, double count, double mean) const {
    return static_cast<float>(decay * static_cast<double>(load_E[e]) + (1 - decay) * count / mean);
  }
  __device__ double shift(float load) const {
    const auto exact = static_cast<double>(load);
    return -strength * log(exact > kLeastLoad ? exact : kLeastLoad);
  }
  __device__ double of(int e, double count, double mean) const { return shift(load(e, count, mean)); }
  __device__ void apply(int e, double count, double mean, double mean_move) const {
    const float new_load = load(e, count, mean);
    load_E[e] = new_load;
    bias_E[e] = static_cast<float>(shift(new_load) - mean_move);
  }
};

struct FollowMean {
  Rows<float> mean_ED;
  Rows<const double> sum_ED;
  const double* count_E;
  double decay;

  __device__ void operator()(std::int64_t e, std::int64_t i) const {
    if (count_E[e] == 0) return;
    float& mean = mean_ED[e][i];
    mean = static_cast<float>(decay * static_cast<double>(mean) + (1 - decay) * sum_ED[e][i] / count_E[e]);
  }
};

struct FollowMoments {
  float *mean_1, *variance_1;
  const double* moments_3;
  double decay;

  __device__ void operator()(std::int64_t, std::int64_t) const {
    if (moments_3[0] == 0) return;
    const double mean = moments_3[1] / moments_3[0];
    double variance = moments_3[2] / moments_3[0] - mean * mean;
    if (variance < 0) variance = 0;
    const double keep = *variance_1 == 0 ? 0 : decay;
    *mean_1 = static_cast<float>(keep * static_cast<double>(*mean_1) + (1 - keep) * mean);
    *variance_1 = static_cast<float>(keep * static_cast<double>(*variance_1) + (1 - keep) * variance);
  }
};

struct FollowTokenMean {
  Rows<float> value_V;
  const double *sum_V, *count_V;
  double decay;

  __device__ void operator()(std::int64_t v, std::int64_t) const {
    if (count_V[v] == 0) return;
    float& value = *value_V[v];
    const double keep = value == 0 ? 0 : decay;
    value = static_cast<float>(keep * static_cast<double>(value) + (1 - keep) * sum_V[v] / count_V[v]);
  }
};

// A thread takes an expert's whole row: the count that it divides by changes in the same pass.
struct FollowRatio {
  Rows<float> key_ED, ema_ED;
  float* ema_E;
  Rows<const double> sum_ED;
  const double* count_E;
  double decay;
  int width;

  __device__ void operator()(std::int64_t, std::int64_t e) const {
    const double count = decay * static_cast<double>(ema_E[e]) + (1 - decay) * count_E[e];
    ema_E[e] = static_cast<float>(count);
    for (int i = 0; i < width; ++i) {
      const double ema = decay * static_cast<double>(ema_ED[e][i]) + (1 - decay) * sum_ED[e][i];
      ema_ED[e][i] = static_cast<float>(ema);
      key_ED[e][i] = static_cast<float>(ema / (count > 1e-6 ? count : 1e-6));
    }
  }
};

}  // namespace

void balance_bias(Tensor bias_E, Tensor count_E, double speed, bool mean_free, Context& ctx) {
  if (mean_free)
    launch("balance_bias", centred_moves_kernel<SignMove>, {1, kThreads}, ctx,
           SignMove{bias_E.as<float>(), speed}, count_E.as<double>(), bias_E.rows());
  else
    launch("balance_bias", balance_bias_kernel, {1, kThreads}, ctx, bias_E.as<float>(), count_E.as<double>(),
           speed, bias_E.rows());
}

void balance_bias_softly(Tensor bias_E, Tensor momentum_E, Tensor count_E, const SoftClamp& clamp,
                         Context& ctx) {
  launch("balance_bias_softly", centred_moves_kernel<SoftMove>, {1, kThreads}, ctx,
         SoftMove{bias_E.as<float>(), momentum_E.as<float>(), clamp}, count_E.as<double>(), bias_E.rows());
}

void follow_load_bias(Tensor bias_E, Tensor load_E, Tensor count_E, double decay, double strength,
                      Context& ctx) {
  launch("follow_load_bias", centred_moves_kernel<LoadMove>, {1, kThreads}, ctx,
         LoadMove{bias_E.as<float>(), load_E.as<float>(), decay, strength}, count_E.as<double>(),
         bias_E.rows());
}

void follow_quantiles(Tensor value_E, Tensor count_EN, double q, double decay, Context& ctx) {
  ScratchScope scope(ctx.scratch);
  const auto [gap_E, total_E] = quantiles("follow_quantiles", count_EN, q, ctx);
  for_each_pack<1>("follow_quantiles", 1, value_E.rows(), ctx,
                   FollowQuantile{value_E.as<float>(), gap_E.as<double>(), 1 - decay});
}

void follow_quantile_bias(Tensor bias_E, Tensor count_EN, double share, double ema, Context& ctx) {
  ScratchScope scope(ctx.scratch);
  const auto [gap_E, total_E] = quantiles("follow_quantile_bias", count_EN, share, ctx);
  launch("follow_quantile_bias", quantile_bias_kernel, {1, kThreads}, ctx, bias_E.as<float>(),
         gap_E.as<double>(), total_E.as<double>(), ema, bias_E.rows());
}

void follow_means(Tensor mean_ED, Tensor sum_ED, Tensor count_E, double decay, Context& ctx) {
  for_each_pack<1>(
      "follow_means", mean_ED.rows(), mean_ED.dim(1), ctx,
      FollowMean{rows_of<float>(mean_ED), rows_of<const double>(sum_ED), count_E.as<double>(), decay});
}

void follow_moments(Tensor mean_1, Tensor variance_1, Tensor moments_3, double decay, Context& ctx) {
  for_each_pack<1>("follow_moments", 1, 1, ctx,
                   FollowMoments{mean_1.as<float>(), variance_1.as<float>(), moments_3.as<double>(), decay});
}

void follow_token_means(Tensor value_V, Tensor sum_2V, double decay, Context& ctx) {
  const double* const sum = sum_2V.as<double>();
  for_each_pack<1>("follow_token_means", value_V.rows(), 1, ctx,
                   FollowTokenMean{rows_of<float>(value_V), sum, sum + value_V.rows(), decay});
}

void follow_ratios(Tensor key_ED, Tensor ema_ED, Tensor ema_E, Tensor sum_ED, Tensor count_E, double decay,
                   Context& ctx) {
  for_each_pack<1>(
      "follow_ratios", 1, key_ED.rows(), ctx,
      FollowRatio{rows_of<float>(key_ED), rows_of<float>(ema_ED), ema_E.as<float>(),
                  rows_of<const double>(sum_ED), count_E.as<double>(), decay, static_cast<int>(key_ED.dim(1))});
}

}  // namespace switchyard::ops::cuda
