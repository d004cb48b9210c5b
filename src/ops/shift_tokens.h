// Tokens further ahead, for multi-token prediction.   T tokens of sequences of S
#pragma once

#include "ops/operator.h"

namespace switchyard::ops {

// For position i of a sequence, with k = `ahead` in [1, S]: next_T[i] = token_T[i+k], next_target_T[i] =
// target_T[i+k]; both -1 where i+k is beyond the sequence or padding, where it has no target, or where token
// i+k does not see token i (kv_begin_T[i+k] > i): then it belongs to another document (core/shifted_target.h).
// Both are set.   All i32.
SY_OPERATOR(shift_tokens, Tensor next_T, Tensor next_target_T, Tensor token_T, Tensor target_T,
            Tensor kv_begin_T, std::int64_t seq_len, std::int64_t ahead, Context& ctx);

}  // namespace switchyard::ops
