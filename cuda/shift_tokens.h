// Tokens further ahead, on the device; see ops/shift_tokens.h.
#pragma once

#include "core/context.h"

namespace switchyard::cuda {

void shift_tokens(Tensor next_T, Tensor next_target_T, Tensor token_T, Tensor target_T, Tensor kv_begin_T,
                  std::int64_t seq_len, std::int64_t ahead, Context& ctx);

}  // namespace switchyard::cuda
