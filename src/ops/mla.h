// Keys and values of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): each head's key
// is its own part, without position, and one rotated part that all heads share.
//   T tokens, H heads, P width of the part without position, R of the rotated part, V of a value head
#pragma once

#include <cstdint>

#include "ops/operator.h"

namespace switchyard::ops {

struct MlaWidths {
  std::int64_t heads;
  std::int64_t nope;  // of a key, without position
  std::int64_t rope;  // of a key, rotated; shared by all heads
  std::int64_t value;
};

// k_THN[t,h] = [kv_TM[t,h][0:P], k_rope_TR[t]],  v_THV[t,h] = kv_TM[t,h][P:P+V].   Both set.
//   kv_TM [T, H*(P+V)], k_rope_TR [T, R] (rows may be strided) -> k_THN [T, H*(P+R)], v_THV [T, H*V]
SY_OPERATOR(mla_split_forward, Tensor k_THN, Tensor v_THV, Tensor kv_TM, Tensor k_rope_TR,
            const MlaWidths& widths, Context& ctx);
// The gradients, set; dk_rope_TR is summed over heads in ascending order.
SY_OPERATOR(mla_split_backward, Tensor dkv_TM, Tensor dk_rope_TR, Tensor dk_THN, Tensor dv_THV,
            const MlaWidths& widths, Context& ctx);

// Attention over latent vectors alone (the same paper, "absorbed" weights), for generating with a cache that
// holds nothing else. With W_k[h] = kv_b_MC[h*(P+V)][0:P] and W_v[h] the V rows behind it, a score
//   q.(W_k c) + q_rope.k_rope = (W_k^T q).c + q_rope.k_rope     and a sum of values  W_v (sum_s p_s c_s).
//   C width of the latent
// q_latent_THL[t,h] = [W_k[h]^T q_THN[t,h][0:P], q_THN[t,h][P:P+R]], set: the query of a key [c, k_rope] that
// all heads share. q_THN [T, H*(P+R)], kv_b_MC [H*(P+V), C] -> q_latent_THL [T, H*(C+R)]; rows may be strided.
SY_OPERATOR(mla_absorb_query, Tensor q_latent_THL, Tensor q_THN, Tensor kv_b_MC, const MlaWidths& widths,
            Context& ctx);
// out_THV[t,h] = W_v[h] latent_THC[t,h], set.   latent_THC [T, H*C] -> out_THV [T, H*V]
SY_OPERATOR(mla_expand_value, Tensor out_THV, Tensor latent_THC, Tensor kv_b_MC, const MlaWidths& widths,
            Context& ctx);

}  // namespace switchyard::ops
