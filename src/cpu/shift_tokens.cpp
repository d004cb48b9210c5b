#include "cpu/shift_tokens.h"

namespace switchyard::cpu {

std::int64_t shift_tokens(Tensor next_T, Tensor next_target_T, Tensor token_T, Tensor target_T,
                          Tensor kv_begin_T, std::int64_t seq_len, std::int64_t ahead) {
  const auto* token = token_T.as<std::int32_t>();
  const auto* target = target_T.as<std::int32_t>();
  const auto* kv_begin = kv_begin_T.as<std::int32_t>();
  auto* next = next_T.as<std::int32_t>();
  auto* next_target = next_target_T.as<std::int32_t>();
  std::int64_t n_targets = 0;
  for (std::int64_t t = 0; t < token_T.rows(); ++t) {
    const std::int64_t i = t % seq_len;
    const bool has_target =
        i + ahead < seq_len && token[t + ahead] >= 0 && target[t + ahead] >= 0 && kv_begin[t + ahead] <= i;
    next[t] = has_target ? token[t + ahead] : -1;
    next_target[t] = has_target ? target[t + ahead] : -1;
    n_targets += has_target ? 1 : 0;
  }
  return n_targets;
}

}  // namespace switchyard::cpu
