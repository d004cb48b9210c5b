// The CPU version of ops/router_state.h, which holds the contracts. T: float or double.
#pragma once

#include "core/tensor.h"

namespace switchyard::ops::cpu {

template <class T>
void balance_bias(Tensor bias_E, Tensor count_E, double speed);
template <class T>
void follow_quantiles(Tensor value_E, Tensor count_EN, double q, double decay);
template <class T>
void follow_quantile_bias(Tensor bias_E, Tensor count_EN, double share, double ema);
template <class T>
void follow_means(Tensor mean_ED, Tensor sum_ED, Tensor count_E, double decay);
template <class T>
void follow_moments(Tensor mean_1, Tensor variance_1, Tensor moments_3, double decay);
template <class T>
void follow_ratios(Tensor key_ED, Tensor ema_ED, Tensor ema_E, Tensor sum_ED, Tensor count_E, double decay);

}  // namespace switchyard::ops::cpu
