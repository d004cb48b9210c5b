// AdamW on the device; formula: ops/adamw.h. All f32 but weight_P, which is bf16.
#pragma once

#include "core/adamw_step.h"
#include "core/context.h"

namespace switchyard::ops::cuda {

void adamw_update(Tensor param_P, Tensor m_P, Tensor v_P, Tensor grad_P, Tensor grad_scale_1,
                  const AdamWStep& step, Context& ctx, Tensor weight_P = {});
void clip_factor(Tensor grad_scale_1, Tensor sum_of_squares_1, double clip_norm, Context& ctx);

}  // namespace switchyard::ops::cuda
