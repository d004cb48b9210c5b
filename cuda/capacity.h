// The capacity of experts on the device; contract: ops/capacity.h. Weights f32, experts and tokens i32.
// expert_TK is contiguous and holds no expert that is not there.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cuda {

void limit_capacity(Tensor kept_expert_TK, Tensor kept_weight_TK, Tensor dropped_1, Tensor expert_TK,
                    Tensor weight_TK, Tensor skip_T, std::int64_t n_experts, double factor, Context& ctx);

}  // namespace switchyard::ops::cuda
