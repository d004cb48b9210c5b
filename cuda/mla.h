// Keys and values of latent attention on the device; shapes and formulas: ops/mla.h. All tensors of a call f32
// or all bf16; sums in f32.
#pragma once

#include "core/context.h"
#include "core/mla_widths.h"

namespace switchyard::ops::cuda {

void mla_split_forward(Tensor k_THN, Tensor v_THV, Tensor kv_TM, Tensor k_rope_TR, const MlaWidths& widths,
                       Context& ctx);
void mla_split_backward(Tensor dkv_TM, Tensor dk_rope_TR, Tensor dk_THN, Tensor dv_THV, const MlaWidths& widths,
                        Context& ctx);
void mla_absorb_query(Tensor q_latent_THL, Tensor q_THN, Tensor kv_b_MC, const MlaWidths& widths, Context& ctx);
void mla_expand_value(Tensor out_THV, Tensor latent_THC, Tensor kv_b_MC, const MlaWidths& widths, Context& ctx);

}  // namespace switchyard::ops::cuda
