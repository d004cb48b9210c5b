// Cosine similarity on the device; shapes and formulas: ops/cosine.h. All f32 but expert_sums' f64 results,
// which may lie on the host: the call waits then.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cuda {

void row_norm_l1(Tensor norm_R, Tensor x_RD, Context& ctx);
void row_norm_l2(Tensor norm_R, Tensor x_RD, Context& ctx);
void cosine_forward(Tensor score_TE, Tensor x_norm_T, Tensor mean_norm_E, Context& ctx);
void cosine_backward(Tensor dscore_TE, Tensor dx_TD, Tensor score_TE, Tensor x_TD, Tensor x_norm_T,
                     Tensor mean_norm_E, Context& ctx);
void expert_sums(Tensor sum_ED, Tensor count_E, Tensor x_TD, Tensor expert_TK, Context& ctx);

}  // namespace switchyard::ops::cuda
