// Attention on the device; masks, shapes and formulas: ops/attention.h. q, k, v, out and their gradients f32,
// or all bf16; lse and entropies f32 always, kv_begin_T i32. scale > 0.
#pragma once

#include "core/attention_shape.h"
#include "core/context.h"

namespace switchyard::ops::cuda {

void attention_forward(Tensor out_THM, Tensor lse_TH, Tensor q_THN, Tensor k_TGN, Tensor v_TGM,
                       Tensor kv_begin_T, const AttentionShape& shape, Context& ctx, Tensor entropy_TH = {});
void attention_row_entropy(Tensor entropy_T, Tensor entropy_TH, Tensor kv_begin_T, std::int64_t seq_len,
                           std::int64_t first, Context& ctx);
void attention_backward(Tensor dq_THN, Tensor dk_TGN, Tensor dv_TGM, Tensor dout_THM, Tensor out_THM,
                        Tensor lse_TH, Tensor q_THN, Tensor k_TGN, Tensor v_TGM, Tensor kv_begin_T,
                        const AttentionShape& shape, Context& ctx);

// lse_TH of n sequences, contiguous, as cuDNN's gradients read it: lse_BHS[b, h, s] = lse_TH[b S + s, h]. Set.
void attention_lse_by_head(Tensor lse_BHS, Tensor lse_TH, Context& ctx);

}  // namespace switchyard::ops::cuda
