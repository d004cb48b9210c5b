#include "cpu/shift_tokens.h"

#include "core/shifted_target.h"

namespace switchyard::cpu {

void shift_tokens(Tensor next_T, Tensor next_target_T, Tensor token_T, Tensor target_T, Tensor kv_begin_T,
                  std::int64_t seq_len, std::int64_t ahead) {
  const auto* token = token_T.as<std::int32_t>();
  const auto* target = target_T.as<std::int32_t>();
  const auto* kv_begin = kv_begin_T.as<std::int32_t>();
  for (std::int64_t t = 0; t < token_T.rows(); ++t) {
    const bool has_target = has_shifted_target(token, target, kv_begin, t, seq_len, ahead);
    next_T.as<std::int32_t>()[t] = has_target ? token[t + ahead] : -1;
    next_target_T.as<std::int32_t>()[t] = has_target ? target[t + ahead] : -1;
  }
}

}  // namespace switchyard::cpu
