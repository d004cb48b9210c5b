// Keys and values of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): each head's key
// is its own part, without position, and one rotated part that all heads share.
//   T tokens, H heads, P width of the part without position, R of the rotated part, V of a value head
#pragma once

#include "core/context.h"
#include "core/mla_widths.h"

namespace switchyard::ops {

// k_THN[t,h] = [kv_TM[t,h][0:P], k_rope_TR[t]],  v_THV[t,h] = kv_TM[t,h][P:P+V].   Both set.
//   kv_TM [T, H*(P+V)], k_rope_TR [T, R] (rows may be strided) -> k_THN [T, H*(P+R)], v_THV [T, H*V]
void mla_split_forward(Tensor k_THN, Tensor v_THV, Tensor kv_TM, Tensor k_rope_TR, const MlaWidths& widths,
                       Context& ctx);
// The gradients, set; dk_rope_TR is summed over heads in ascending order.
void mla_split_backward(Tensor dkv_TM, Tensor dk_rope_TR, Tensor dk_THN, Tensor dv_THV, const MlaWidths& widths,
                        Context& ctx);

}  // namespace switchyard::ops
