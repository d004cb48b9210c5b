// The CPU version of ops/shift_tokens.h, which holds the contract.
#pragma once

#include "core/context.h"

namespace switchyard::cpu {

void shift_tokens(Tensor next_T, Tensor next_target_T, Tensor token_T, Tensor target_T, Tensor kv_begin_T,
                  std::int64_t seq_len, std::int64_t ahead);

}  // namespace switchyard::cpu
