// The norm of each head of q and k, as in Qwen3, and the rotary embedding of what comes out of it: rmsnorm.h,
// then rope.h, in one pass over memory.
//   T tokens, H heads of q, G heads of k, N head width, P = N / 2 pairs, S positions, M columns of a
//   projection. A QueryKey's shapes are given as q's | k's.
#pragma once

#include "ops/operator.h"

namespace switchyard::ops {

// Two tensors of one meaning, of queries and of keys, where an operator treats both alike.
struct QueryKey {
  Tensor q, k;
};

// out = rope(rmsnorm(in)) for each head of `in`, the columns of qkv_TM: first q's H*N, then k's G*N; others
// follow. out [T, H*N] | [T, G*N] and rstd [T, H] | [T, G] are set; weight_N [N] each. Token t is at position
// t mod seq_len; a head's first half turns with its second (RopePairs::halves).   f32|f64
SY_OPERATOR(qk_norm_rope_forward, QueryKey out, QueryKey rstd, Tensor qkv_TM, QueryKey weight_N, Tensor cos_SP,
            Tensor sin_SP, std::int64_t seq_len, double eps, Context& ctx);

// With dy = dout turned back, x = in * rstd and g = dy * weight, for each head:
//   din = rstd * (g - x * mean_n(g * x)), set: q's and k's columns of dqkv_TM, the others stay as they are
//   dweight_N += sum over tokens and heads of dy * x, the tokens in fixed blocks, in ascending order
SY_OPERATOR(qk_norm_rope_backward, Tensor dqkv_TM, QueryKey dweight_N, QueryKey dout, Tensor qkv_TM,
            QueryKey rstd, QueryKey weight_N, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len, Context& ctx);

}  // namespace switchyard::ops
