// The capacity of experts on the device; contract: ops/capacity.h. Weights f32, experts and tokens i32.
// expert_TK is contiguous and holds no expert that is not there.
#pragma once

#include "core/context.h"

namespace switchyard::cuda {

// Its result is a number on the host: it waits for the device, the one operator of a router that has to.
std::int64_t limit_capacity(Tensor kept_expert_TK, Tensor kept_weight_TK, Tensor expert_TK, Tensor weight_TK,
                            Tensor skip_T, std::int64_t n_experts, double factor, Context& ctx);

}  // namespace switchyard::cuda
