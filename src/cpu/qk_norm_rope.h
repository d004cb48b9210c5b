// The CPU version of ops/qk_norm_rope.h, which holds the contracts. T: float or double.
#pragma once

#include "core/context.h"
#include "core/query_key.h"

namespace switchyard::ops::cpu {

template <class T>
void qk_norm_rope_forward(QueryKey out, QueryKey rstd, Tensor qkv_TM, QueryKey weight_N, Tensor cos_SP,
                          Tensor sin_SP, std::int64_t seq_len, double eps);
template <class T>
void qk_norm_rope_backward(Tensor dqkv_TM, QueryKey dweight_N, QueryKey dout, Tensor qkv_TM, QueryKey rstd,
                           QueryKey weight_N, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len,
                           Scratch& scratch);

}  // namespace switchyard::ops::cpu
