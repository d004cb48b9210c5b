// AdamW on the device; formula: ops/adamw.h. All f32 but weight_P, which is bf16.
#pragma once

#include "core/adamw_step.h"
#include "core/context.h"

namespace switchyard::cuda {

void adamw_update(Tensor param_P, Tensor m_P, Tensor v_P, Tensor grad_P, const AdamWStep& step, Context& ctx,
                  Tensor weight_P = {});

}  // namespace switchyard::cuda
