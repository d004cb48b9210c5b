// ops/capacity.h on the CPU.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cpu {

template <class T>
void limit_capacity(Tensor kept_expert_TK, Tensor kept_weight_TK, Tensor dropped_1, Tensor expert_TK,
                    Tensor weight_TK, Tensor skip_T, std::int64_t n_experts, double factor, Context& ctx);

}  // namespace switchyard::ops::cpu
