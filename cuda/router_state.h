// What a step does to routers' states on the device; contracts: ops/router_state.h. States are f32; nobody
// waits.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cuda {

void balance_bias(Tensor bias_E, Tensor count_E, double speed, Context& ctx);
void follow_quantiles(Tensor value_E, Tensor count_EN, double q, double decay, Context& ctx);
void follow_quantile_bias(Tensor bias_E, Tensor count_EN, double share, double ema, Context& ctx);
void follow_means(Tensor mean_ED, Tensor sum_ED, Tensor count_E, double decay, Context& ctx);
void follow_moments(Tensor mean_1, Tensor variance_1, Tensor moments_3, double decay, Context& ctx);
void follow_ratios(Tensor key_ED, Tensor ema_ED, Tensor ema_E, Tensor sum_ED, Tensor count_E, double decay,
                   Context& ctx);

}  // namespace switchyard::ops::cuda
