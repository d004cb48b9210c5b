// CPU implementation of ops/attention.h.
#pragma once

#include "core/attention_shape.h"
#include "core/context.h"

namespace switchyard::ops::cpu {

template <class T>
void attention_forward(Tensor out_THM, Tensor lse_TH, Tensor entropy_TH, Tensor q_THN, Tensor k_TGN,
                       Tensor v_TGM, Tensor kv_begin_T, const AttentionShape& shape, Context& ctx);
template <class T>
void attention_row_entropy(Tensor entropy_T, Tensor entropy_TH, Tensor kv_begin_T, std::int64_t seq_len,
                           std::int64_t first);
template <class T>
void attention_backward(Tensor dq_THN, Tensor dk_TGN, Tensor dv_TGM, Tensor dout_THM, Tensor out_THM,
                        Tensor lse_TH, Tensor q_THN, Tensor k_TGN, Tensor v_TGM, Tensor kv_begin_T,
                        const AttentionShape& shape, Context& ctx);

}  // namespace switchyard::ops::cpu
