// Rotary position embedding, alone and behind the norm of each head.
#pragma once

#include <cstdint>

#include "ops/operator.h"

namespace switchyard::ops {

// Rotary position embedding (Su et al., arXiv 2104.09864), plain, scaled linearly or by YaRN (Peng et al.,
// arXiv 2309.00071).   T tokens, H heads, N head width, S positions, P pairs of a head that are rotated (2P <=
// N)

enum class RopePairs : std::uint8_t { halves, neighbours };

struct RopeLayout {
  std::int64_t head_dim;
  RopePairs pairs = RopePairs::halves;
};

// cos_SP[s,i] = scale * cos(s * f_i), sin_SP likewise; frequency_P f64, on the host. Set; angles in double.
SY_OPERATOR(rope_table, Tensor cos_SP, Tensor sin_SP, Tensor frequency_P, double scale, Context& ctx);

// Rotates the last 2P elements of every head of x_THN ([T, H*N], rows may be strided) in place; token t is at
// position t mod seq_len. Halves: element i of those is paired with i + P (Hugging Face's Llama family);
// neighbours: 2i with 2i + 1.     (a, b)  ->  (a cos - b sin, b cos + a sin)
SY_OPERATOR(rope_forward, Tensor x_THN, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len,
            const RopeLayout& layout, Context& ctx);

// The gradient, in place: the rotation by the opposite angle (times the table's scale).
SY_OPERATOR(rope_backward, Tensor dx_THN, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len,
            const RopeLayout& layout, Context& ctx);

// The norm of each head of q and k, as in Qwen3, and the rotary embedding of what comes out of it:
// rmsnorm_forward (norm.h), then rope_forward, in one pass over memory.
//   T tokens, H heads of q, G heads of k, N head width, P = N / 2 pairs, S positions, M columns of a
//   projection. A QueryKey's shapes are given as q's | k's.

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
