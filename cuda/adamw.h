// AdamW on the device; formula: ops/adamw.h. All f32: weights that are used in bf16 are updated here in full.
#pragma once

#include "core/adamw_step.h"
#include "core/context.h"

namespace switchyard::cuda {

void adamw_update(Tensor param_P, Tensor m_P, Tensor v_P, Tensor grad_P, const AdamWStep& step, Context& ctx);

}  // namespace switchyard::cuda
