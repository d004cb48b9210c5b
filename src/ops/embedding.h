// Rows of tokens, and tokens further ahead.
#pragma once

#include "ops/operator.h"

namespace switchyard::ops {

// Token embedding.   T tokens, D width, V vocabulary

// out_TD[t] = weight_VD[token_T[t]], set; a negative token is padding and gives a row of zeros.
//   token_T i32; weight_VD, out_TD f32|f64. Tokens are < V: the caller has checked them.
SY_OPERATOR(embedding_forward, Tensor out_TD, Tensor token_T, Tensor weight_VD, Context& ctx);

// dweight_VD[token_T[t]] += dout_TD[t], t ascending: the order of the sum is fixed.
SY_OPERATOR(embedding_backward, Tensor dweight_VD, Tensor dout_TD, Tensor token_T, Context& ctx);

// Tokens further ahead, for multi-token prediction.   T tokens of sequences of S

// Position t (of sequences of seq_len) reads token t + ahead and predicts that token's target: if that is in
// its own sequence, is no padding, has a target, and sees t (kv_begin): else it belongs to another document.
// constexpr for device code, which may call such functions.
constexpr bool has_shifted_target(const std::int32_t* token_T, const std::int32_t* target_T,
                                  const std::int32_t* kv_begin_T, std::int64_t t, std::int64_t seq_len,
                                  std::int64_t ahead) {
  const std::int64_t i = t % seq_len, source = t + ahead;
  return i + ahead < seq_len && token_T[source] >= 0 && target_T[source] >= 0 && kv_begin_T[source] <= i;
}

// For position i of a sequence, with k = `ahead` in [1, S]: next_T[i] = token_T[i+k], next_target_T[i] =
// target_T[i+k]; both -1 where i+k is beyond the sequence or padding, where it has no target, or where token
// i+k does not see token i (kv_begin_T[i+k] > i): then it belongs to another document.
// Both are set.   All i32.
SY_OPERATOR(shift_tokens, Tensor next_T, Tensor next_target_T, Tensor token_T, Tensor target_T,
            Tensor kv_begin_T, std::int64_t seq_len, std::int64_t ahead, Context& ctx);

}  // namespace switchyard::ops
