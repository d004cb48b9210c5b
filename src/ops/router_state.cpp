#include "ops/router_state.h"

#include "cpu/router_state.h"
#include "cuda/router_state.h"
#include "ops/dispatch.h"
#include "ops/histogram.h"

namespace switchyard::ops {

namespace {

void check_bins(const Tensor& value_E, const Tensor& count_EN) {
  check_shape(value_E, Shape{value_E.rows()}, "a state of experts");
  check_f64(count_EN, Shape{value_E.rows(), 2 * kGapBins}, "count_EN");
}

void check_sums(const Tensor& state_ED, const Tensor& sum_ED, const Tensor& count_E) {
  check_contiguous(state_ED, "a state of experts");
  check_f64(sum_ED, Shape{state_ED.rows(), state_ED.dim(1)}, "sum_ED");
  check_f64(count_E, Shape{state_ED.rows()}, "count_E");
}

}  // namespace

void balance_bias(Tensor bias_E, Tensor count_E, double speed, Context& ctx) {
  check_f64(count_E, Shape{bias_E.rows()}, "count_E");
  check_shape(bias_E, count_E.shape(), "bias_E");
  SY_ON_CUDA(ctx, cuda::balance_bias(bias_E, count_E, speed, ctx));
  with_scalar(bias_E.dtype(), [&]<class T>() { cpu::balance_bias<T>(bias_E, count_E, speed); });
}

void follow_quantiles(Tensor value_E, Tensor count_EN, double q, double decay, Context& ctx) {
  check_bins(value_E, count_EN);
  SY_ON_CUDA(ctx, cuda::follow_quantiles(value_E, count_EN, q, decay, ctx));
  with_scalar(value_E.dtype(), [&]<class T>() { cpu::follow_quantiles<T>(value_E, count_EN, q, decay); });
}

void follow_quantile_bias(Tensor bias_E, Tensor count_EN, double share, double ema, Context& ctx) {
  check_bins(bias_E, count_EN);
  SY_ON_CUDA(ctx, cuda::follow_quantile_bias(bias_E, count_EN, share, ema, ctx));
  with_scalar(bias_E.dtype(), [&]<class T>() { cpu::follow_quantile_bias<T>(bias_E, count_EN, share, ema); });
}

void follow_means(Tensor mean_ED, Tensor sum_ED, Tensor count_E, double decay, Context& ctx) {
  check_sums(mean_ED, sum_ED, count_E);
  SY_ON_CUDA(ctx, cuda::follow_means(mean_ED, sum_ED, count_E, decay, ctx));
  with_scalar(mean_ED.dtype(), [&]<class T>() { cpu::follow_means<T>(mean_ED, sum_ED, count_E, decay); });
}

void follow_moments(Tensor mean_1, Tensor variance_1, Tensor moments_3, double decay, Context& ctx) {
  check_shape(mean_1, Shape{1}, "mean_1");
  check_like(variance_1, mean_1, "variance_1");
  check_f64(moments_3, Shape{3}, "moments_3");
  SY_ON_CUDA(ctx, cuda::follow_moments(mean_1, variance_1, moments_3, decay, ctx));
  with_scalar(mean_1.dtype(), [&]<class T>() { cpu::follow_moments<T>(mean_1, variance_1, moments_3, decay); });
}

void follow_ratios(Tensor key_ED, Tensor ema_ED, Tensor ema_E, Tensor sum_ED, Tensor count_E, double decay,
                   Context& ctx) {
  check_sums(key_ED, sum_ED, count_E);
  check_like(ema_ED, key_ED, "ema_ED");
  check_shape(ema_E, count_E.shape(), "ema_E");
  check_dtype(ema_E, key_ED.dtype(), "ema_E");
  SY_ON_CUDA(ctx, cuda::follow_ratios(key_ED, ema_ED, ema_E, sum_ED, count_E, decay, ctx));
  with_scalar(key_ED.dtype(),
              [&]<class T>() { cpu::follow_ratios<T>(key_ED, ema_ED, ema_E, sum_ED, count_E, decay); });
}

}  // namespace switchyard::ops
