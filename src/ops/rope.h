// Rotary position embedding (Su et al., arXiv 2104.09864), plain, scaled linearly or by YaRN (Peng et al.,
// arXiv 2309.00071).   T tokens, H heads, N head width, S positions, P pairs of a head that are rotated (2P <=
// N)
#pragma once

#include <cstdint>

#include "ops/operator.h"

namespace switchyard::ops {

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

}  // namespace switchyard::ops
