#include "ops/router_state.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "ops/cpu/reduce.h"
#include "ops/routing.h"

namespace switchyard::ops {

namespace {

using namespace cpu;

// 0 where nothing was counted. Counts are whole numbers, so that no order of adding them rounds.
double gap_quantile(const double* count_N, double q) {
  constexpr std::int64_t kAll = 2 * kGapBins, kTogether = 64;  // bins that are passed over by their sum
  static_assert(kAll % kTogether == 0);
  const auto& border = gap_borders();
  const auto border_at = [&border](std::int64_t i) {
    return i < kGapBins ? -border[static_cast<std::size_t>(kGapBins - i)]
                        : border[static_cast<std::size_t>(i - kGapBins)];
  };
  const auto sum_from = [count_N](std::int64_t first, std::int64_t n) {
    return sum_in_lanes(n, [count = count_N + first](std::int64_t i) { return count[i]; });
  };
  const double target = q * sum_from(0, kAll);
  double before = 0;
  for (std::int64_t first = 0; first < kAll; first += kTogether) {
    if (const double these = sum_from(first, kTogether); before + these < target) {
      before += these;
      continue;
    }
    for (std::int64_t i = first; i < first + kTogether; ++i) {
      if (count_N[i] > 0 && before + count_N[i] >= target) {
        const double low = border_at(i), high = border_at(i + 1);
        return low + (high - low) * (target - before) / count_N[i];
      }
      before += count_N[i];
    }
  }
  return 0;
}

double mean_of(const Tensor& number_E) {
  const double* number = number_E.as<double>();
  return std::accumulate(number, number + number_E.rows(), 0.0) / static_cast<double>(number_E.rows());
}

// Less their mean.
void centre(std::vector<double>& number_E) {
  const double mean =
      std::accumulate(number_E.begin(), number_E.end(), 0.0) / static_cast<double>(number_E.size());
  for (double& number : number_E) number -= mean;
}

template <class T>
void balance_bias_on_cpu(Tensor bias_E, Tensor count_E, double speed, bool mean_free) {
  T* bias = bias_E.as<T>();
  const double* count = count_E.as<double>();
  const double mean = mean_of(count_E);
  std::vector<double> sign_E;
  for (std::int64_t e = 0; e < count_E.rows(); ++e)
    sign_E.push_back(count[e] < mean ? 1 : count[e] > mean ? -1 : 0);
  if (!mean_free) {  // the steps of published runs, which are rounded before they are added
    for (std::size_t e = 0; e < sign_E.size(); ++e) bias[e] += static_cast<T>(speed * sign_E[e]);
    return;
  }
  centre(sign_E);
  for (std::size_t e = 0; e < sign_E.size(); ++e)
    bias[e] = static_cast<T>(static_cast<double>(bias[e]) + speed * sign_E[e]);
}

template <class T>
void balance_bias_softly_on_cpu(Tensor bias_E, Tensor momentum_E, Tensor count_E, const SoftClamp& clamp) {
  const double mean = mean_of(count_E);
  if (mean == 0) return;
  T *bias = bias_E.as<T>(), *momentum = momentum_E.as<T>();
  const double* count = count_E.as<double>();
  std::vector<double> step_E;
  for (std::int64_t e = 0; e < count_E.rows(); ++e)
    step_E.push_back(clamp.speed * std::tanh(clamp.kappa * (mean - count[e]) / mean));
  centre(step_E);
  for (std::size_t e = 0; e < step_E.size(); ++e) {
    momentum[e] = static_cast<T>(clamp.keep * static_cast<double>(momentum[e]) + (1 - clamp.keep) * step_E[e]);
    bias[e] = static_cast<T>(static_cast<double>(bias[e]) + static_cast<double>(momentum[e]));
  }
}

template <class T>
void follow_load_bias_on_cpu(Tensor bias_E, Tensor load_E, Tensor count_E, double decay, double strength) {
  const double mean = mean_of(count_E);
  if (mean == 0) return;
  T *bias = bias_E.as<T>(), *load = load_E.as<T>();
  const double* count = count_E.as<double>();
  std::vector<double> shift_E;
  for (std::int64_t e = 0; e < count_E.rows(); ++e) {
    load[e] = static_cast<T>(decay * static_cast<double>(load[e]) + (1 - decay) * count[e] / mean);
    shift_E.push_back(-strength * std::log(std::max(static_cast<double>(load[e]), kLeastLoad)));
  }
  centre(shift_E);
  for (std::size_t e = 0; e < shift_E.size(); ++e) bias[e] = static_cast<T>(shift_E[e]);
}

template <class T>
void follow_quantiles_on_cpu(Tensor value_E, Tensor count_EN, double q, double decay) {
  T* value = value_E.as<T>();
  for (std::int64_t e = 0; e < value_E.rows(); ++e)
    value[e] =
        static_cast<T>(static_cast<double>(value[e]) + (1 - decay) * gap_quantile(count_EN.row<double>(e), q));
}

template <class T>
void follow_quantile_bias_on_cpu(Tensor bias_E, Tensor count_EN, double share, double ema) {
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
void follow_means_on_cpu(Tensor mean_ED, Tensor sum_ED, Tensor count_E, double decay) {
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
void follow_moments_on_cpu(Tensor mean_1, Tensor variance_1, Tensor moments_3, double decay) {
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
void follow_token_means_on_cpu(Tensor value_V, Tensor sum_2V, double decay) {
  const Rows<T> value(value_V);
  const double* const sum = sum_2V.as<double>();
  const double* const count = sum + value_V.rows();
  for (std::int64_t v = 0; v < value_V.rows(); ++v) {
    if (count[v] == 0) continue;
    const double keep = *value[v] == T(0) ? 0 : decay;
    *value[v] = static_cast<T>(keep * static_cast<double>(*value[v]) + (1 - keep) * sum[v] / count[v]);
  }
}

template <class T>
void follow_ratios_on_cpu(Tensor key_ED, Tensor ema_ED, Tensor ema_E, Tensor sum_ED, Tensor count_E,
                          double decay) {
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

}  // namespace

void balance_bias(Tensor bias_E, Tensor count_E, double speed, bool mean_free, Context& ctx) {
  const DType real = bias_E.dtype();
  Signature args(ctx);
  args(SY_ARG(bias_E), real)(SY_ARG(count_E), DType::f64, kContiguous);
  run<&cuda::balance_bias>(ctx, real, SY_CPU(balance_bias_on_cpu), bias_E, count_E, speed, mean_free);
}

void balance_bias_softly(Tensor bias_E, Tensor momentum_E, Tensor count_E, const SoftClamp& clamp,
                         Context& ctx) {
  const DType real = bias_E.dtype();
  Signature args(ctx);
  args(SY_ARG(bias_E), real)(SY_ARG(momentum_E), real)(SY_ARG(count_E), DType::f64, kContiguous);
  run<&cuda::balance_bias_softly>(ctx, real, SY_CPU(balance_bias_softly_on_cpu), bias_E, momentum_E, count_E,
                                  clamp);
}

void follow_load_bias(Tensor bias_E, Tensor load_E, Tensor count_E, double decay, double strength,
                      Context& ctx) {
  const DType real = bias_E.dtype();
  Signature args(ctx);
  args(SY_ARG(bias_E), real)(SY_ARG(load_E), real)(SY_ARG(count_E), DType::f64, kContiguous);
  run<&cuda::follow_load_bias>(ctx, real, SY_CPU(follow_load_bias_on_cpu), bias_E, load_E, count_E, decay,
                               strength);
}

void follow_quantiles(Tensor value_E, Tensor count_EN, double q, double decay, Context& ctx) {
  const DType real = value_E.dtype();
  Signature args(ctx);
  args.bind('N', 2 * kGapBins)(SY_ARG(value_E), real)(SY_ARG(count_EN), DType::f64, kContiguous);
  run<&cuda::follow_quantiles>(ctx, real, SY_CPU(follow_quantiles_on_cpu), value_E, count_EN, q, decay);
}

void follow_quantile_bias(Tensor bias_E, Tensor count_EN, double share, double ema, Context& ctx) {
  const DType real = bias_E.dtype();
  Signature args(ctx);
  args.bind('N', 2 * kGapBins)(SY_ARG(bias_E), real)(SY_ARG(count_EN), DType::f64, kContiguous);
  run<&cuda::follow_quantile_bias>(ctx, real, SY_CPU(follow_quantile_bias_on_cpu), bias_E, count_EN, share,
                                   ema);
}

void follow_means(Tensor mean_ED, Tensor sum_ED, Tensor count_E, double decay, Context& ctx) {
  const DType real = mean_ED.dtype();
  Signature args(ctx);
  args(SY_ARG(mean_ED), real, kContiguous)(SY_ARG(sum_ED), DType::f64, kContiguous);
  args(SY_ARG(count_E), DType::f64, kContiguous);
  run<&cuda::follow_means>(ctx, real, SY_CPU(follow_means_on_cpu), mean_ED, sum_ED, count_E, decay);
}

void follow_moments(Tensor mean_1, Tensor variance_1, Tensor moments_3, double decay, Context& ctx) {
  const DType real = mean_1.dtype();
  Signature args(ctx);
  args(SY_ARG(mean_1), real)(SY_ARG(variance_1), real)(SY_ARG(moments_3), DType::f64, kContiguous);
  run<&cuda::follow_moments>(ctx, real, SY_CPU(follow_moments_on_cpu), mean_1, variance_1, moments_3, decay);
}

void follow_token_means(Tensor value_V, Tensor sum_2V, double decay, Context& ctx) {
  const DType real = value_V.dtype();
  Signature args(ctx);
  args(SY_ARG(value_V), real)(SY_ARG(sum_2V), DType::f64, kContiguous);
  run<&cuda::follow_token_means>(ctx, real, SY_CPU(follow_token_means_on_cpu), value_V, sum_2V, decay);
}

void follow_ratios(Tensor key_ED, Tensor ema_ED, Tensor ema_E, Tensor sum_ED, Tensor count_E, double decay,
                   Context& ctx) {
  const DType real = key_ED.dtype();
  Signature args(ctx);
  args(SY_ARG(key_ED), real, kContiguous)(SY_ARG(ema_ED), real)(SY_ARG(ema_E), real);
  args(SY_ARG(sum_ED), DType::f64, kContiguous)(SY_ARG(count_E), DType::f64, kContiguous);
  run<&cuda::follow_ratios>(ctx, real, SY_CPU(follow_ratios_on_cpu), key_ED, ema_ED, ema_E, sum_ED, count_E,
                            decay);
}

}  // namespace switchyard::ops
