// Rotary position embedding (Su et al., arXiv 2104.09864) in the half-split layout of Hugging Face's Llama
// family: element i of a head is paired with element i + N/2.   T tokens, H heads, N head width, S positions
#pragma once

#include "core/context.h"

namespace switchyard::ops {

// cos_SP[s,i] = cos(s * theta^(-2i/N)), sin_SP likewise, i < P = N/2. Set; angles in double.
void rope_table(Tensor cos_SP, Tensor sin_SP, double theta, Context& ctx);

// Rotates every head of x_THN ([T, H*N], rows may be strided) in place; token t is at position t mod seq_len:
//   (a, b) = (x[i], x[i+N/2])  ->  (a cos - b sin, b cos + a sin)
void rope_forward(Tensor x_THN, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len, Context& ctx);

// The gradient, in place: the rotation by the opposite angle.
void rope_backward(Tensor dx_THN, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len, Context& ctx);

}  // namespace switchyard::ops
