// CPU implementation of ops/attention.h.
#pragma once

#include "core/attention_shape.h"
#include "core/context.h"

namespace switchyard::cpu {

template <class T>
void attention_forward(Tensor out_THN, Tensor lse_TH, Tensor q_THN, Tensor k_TGN, Tensor v_TGN,
                       Tensor kv_begin_T, const AttentionShape& shape, Context& ctx);
template <class T>
void attention_backward(Tensor dq_THN, Tensor dk_TGN, Tensor dv_TGN, Tensor dout_THN, Tensor out_THN,
                        Tensor lse_TH, Tensor q_THN, Tensor k_TGN, Tensor v_TGN, Tensor kv_begin_T,
                        const AttentionShape& shape, Context& ctx);

}  // namespace switchyard::cpu
