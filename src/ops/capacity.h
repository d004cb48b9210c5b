// The capacity of experts.   T tokens, K slots a token, E experts
#pragma once

#include "ops/operator.h"

namespace switchyard::ops {

// An expert takes at most ceil(factor * n * K / E) slots, n the tokens that are not padding (token_T >= 0):
// those of largest weight, equal ones in order of position (token, then slot). kept_expert_TK i32 and
// kept_weight_TK are the given ones, with -1 and 0 where a slot was dropped. Both set, and
// dropped_1 i32: how many slots were dropped.
SY_OPERATOR(limit_capacity, Tensor kept_expert_TK, Tensor kept_weight_TK, Tensor dropped_1, Tensor expert_TK,
            Tensor weight_TK, Tensor token_T, std::int64_t n_experts, double factor, Context& ctx);

}  // namespace switchyard::ops
