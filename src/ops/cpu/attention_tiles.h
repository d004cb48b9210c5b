// Attention whose scores, softmax and gradients stay in registers and the first-level cache: what
// ops/attention.cpp takes where the processor has AVX-512 and the sizes fit. Its plain loops over
// ops/cpu/gemm.h are what these are held to.
#pragma once

#include "ops/attention.h"
#include "ops/cpu/gemm.h"

namespace switchyard::ops::cpu {

// Whether the functions below take such sizes here.
bool has_attention_tiles(const AttentionShape& shape);

// ops::attention_forward and ops::attention_backward, of float32, with operands of products packed into `word`.
void attention_forward_tiles(PackedWord word, Tensor out_THM, Tensor lse_TH, Tensor q_THN, Tensor k_TGN,
                             Tensor v_TGM, Tensor kv_begin_T, const AttentionShape& shape, Tensor entropy_TH,
                             Context& ctx);
void attention_backward_tiles(PackedWord word, Tensor dq_THN, Tensor dk_TGN, Tensor dv_TGM, Tensor dout_THM,
                              Tensor out_THM, Tensor lse_TH, Tensor q_THN, Tensor k_TGN, Tensor v_TGM,
                              Tensor kv_begin_T, const AttentionShape& shape, Context& ctx);

}  // namespace switchyard::ops::cpu
