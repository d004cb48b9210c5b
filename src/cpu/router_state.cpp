#include "cpu/router_state.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "ops/cpu/reduce.h"
#include "ops/histogram.h"

// Legend: E experts, N bins, D columns. One thread: a few operations for each number of a state.

namespace switchyard::ops::cpu {

namespace {

// 0 where nothing was counted.
double gap_quantile(const double* count_N, double q) {
  constexpr auto kSide = static_cast<std::size_t>(kGapBins);
  const auto& border = gap_borders();
  const double target = q * std::accumulate(count_N, count_N + 2 * kSide, 0.0);
  double before = 0;
  for (std::size_t i = 0; i < 2 * kSide; ++i) {
    if (count_N[i] > 0 && before + count_N[i] >= target) {
      const double low = i < kSide ? -border[kSide - i] : border[i - kSide];
      const double high = i < kSide ? -border[kSide - 1 - i] : border[i - kSide + 1];
      return low + (high - low) * (target - before) / count_N[i];
    }
    before += count_N[i];
  }
  return 0;
}

}  // namespace

template <class T>
void balance_bias(Tensor bias_E, Tensor count_E, double speed) {
  T* bias = bias_E.as<T>();
  const double* count = count_E.as<double>();
  const std::int64_t E = count_E.rows();
  const double mean = std::accumulate(count, count + E, 0.0) / static_cast<double>(E);
  for (std::int64_t e = 0; e < E; ++e) {
    if (count[e] < mean) bias[e] += static_cast<T>(speed);
    if (count[e] > mean) bias[e] -= static_cast<T>(speed);
  }
}

template <class T>
void follow_quantiles(Tensor value_E, Tensor count_EN, double q, double decay) {
  T* value = value_E.as<T>();
  for (std::int64_t e = 0; e < value_E.rows(); ++e)
    value[e] =
        static_cast<T>(static_cast<double>(value[e]) + (1 - decay) * gap_quantile(count_EN.row<double>(e), q));
}

template <class T>
void follow_quantile_bias(Tensor bias_E, Tensor count_EN, double share, double ema) {
  const double* count = count_EN.as<double>();
  if (std::all_of(count, count + count_EN.numel(), [](double n) { return n == 0; })) return;
  T* bias = bias_E.as<T>();
  std::vector<double> solved_E;
  for (std::int64_t e = 0; e < bias_E.rows(); ++e)
    solved_E.push_back(static_cast<double>(bias[e]) + gap_quantile(count_EN.row<double>(e), share));
  const double mean =
      std::accumulate(solved_E.begin(), solved_E.end(), 0.0) / static_cast<double>(solved_E.size());
  for (std::size_t e = 0; e < solved_E.size(); ++e)
    bias[e] = static_cast<T>(ema * static_cast<double>(bias[e]) + (1 - ema) * (solved_E[e] - mean));
}

template <class T>
void follow_means(Tensor mean_ED, Tensor sum_ED, Tensor count_E, double decay) {
  const Rows<T> mean_rows(mean_ED);
  const Rows<double> sum(sum_ED);
  for (std::int64_t e = 0; e < mean_ED.rows(); ++e) {
    const double count = count_E.as<double>()[e];
    if (count == 0) continue;
    for (std::int64_t i = 0; i < mean_ED.dim(1); ++i) {
      T& mean = mean_rows[e][i];
      mean = static_cast<T>(decay * static_cast<double>(mean) + (1 - decay) * sum[e][i] / count);
    }
  }
}

template <class T>
void follow_moments(Tensor mean_1, Tensor variance_1, Tensor moments_3, double decay) {
  const double* moments = moments_3.as<double>();
  if (moments[0] == 0) return;
  T &mean = *mean_1.as<T>(), &variance = *variance_1.as<T>();
  const double seen = moments[1] / moments[0];
  const double seen_variance = std::max(0.0, moments[2] / moments[0] - seen * seen);
  const double keep = variance == T(0) ? 0 : decay;
  mean = static_cast<T>(keep * static_cast<double>(mean) + (1 - keep) * seen);
  variance = static_cast<T>(keep * static_cast<double>(variance) + (1 - keep) * seen_variance);
}

template <class T>
void follow_ratios(Tensor key_ED, Tensor ema_ED, Tensor ema_E, Tensor sum_ED, Tensor count_E, double decay) {
  const Rows<T> key(key_ED), ema_rows(ema_ED);
  const Rows<double> sum(sum_ED);
  for (std::int64_t e = 0; e < key_ED.rows(); ++e) {
    T& ema_count = ema_E.as<T>()[e];
    const double count = decay * static_cast<double>(ema_count) + (1 - decay) * count_E.as<double>()[e];
    ema_count = static_cast<T>(count);
    for (std::int64_t i = 0; i < key_ED.dim(1); ++i) {
      const double ema = decay * static_cast<double>(ema_rows[e][i]) + (1 - decay) * sum[e][i];
      ema_rows[e][i] = static_cast<T>(ema);
      key[e][i] = static_cast<T>(ema / std::max(count, 1e-6));
    }
  }
}

#define INSTANTIATE(T)                                                   \
  template void balance_bias<T>(Tensor, Tensor, double);                 \
  template void follow_quantiles<T>(Tensor, Tensor, double, double);     \
  template void follow_quantile_bias<T>(Tensor, Tensor, double, double); \
  template void follow_means<T>(Tensor, Tensor, Tensor, double);         \
  template void follow_moments<T>(Tensor, Tensor, Tensor, double);       \
  template void follow_ratios<T>(Tensor, Tensor, Tensor, Tensor, Tensor, double);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace switchyard::ops::cpu
