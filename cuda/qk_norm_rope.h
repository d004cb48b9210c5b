// Norm and rotation of q and k on the device; shapes and formulas: ops/qk_norm_rope.h. qkv, out, weights and
// the gradients of qkv and out f32, or all bf16; rstd, tables and dweight_N f32 always. All arithmetic in f32,
// rounded once, at the end.
#pragma once

#include "core/context.h"
#include "core/query_key.h"

namespace switchyard::ops::cuda {

void qk_norm_rope_forward(QueryKey out, QueryKey rstd, Tensor qkv_TM, QueryKey weight_N, Tensor cos_SP,
                          Tensor sin_SP, std::int64_t seq_len, double eps, Context& ctx);
void qk_norm_rope_backward(Tensor dqkv_TM, QueryKey dweight_N, QueryKey dout, Tensor qkv_TM, QueryKey rstd,
                           QueryKey weight_N, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len, Context& ctx);

}  // namespace switchyard::ops::cuda
