// Which positions have a target at a depth of multi-token prediction.
#pragma once

#include <cstdint>

namespace switchyard {

// Position t (of sequences of seq_len) reads token t + ahead and predicts that token's target: if that is in
// its own sequence, is no padding, has a target, and sees t (kv_begin): else it belongs to another document.
// constexpr for device code, which may call such functions.
constexpr bool has_shifted_target(const std::int32_t* token_T, const std::int32_t* target_T,
                                  const std::int32_t* kv_begin_T, std::int64_t t, std::int64_t seq_len,
                                  std::int64_t ahead) {
  const std::int64_t i = t % seq_len, source = t + ahead;
  return i + ahead < seq_len && token_T[source] >= 0 && target_T[source] >= 0 && kv_begin_T[source] <= i;
}

}  // namespace switchyard
