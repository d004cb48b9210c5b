// The CPU version of ops/mla.h, which holds the contracts. T: float or double.
#pragma once

#include "core/context.h"
#include "core/mla_widths.h"

namespace switchyard::ops::cpu {

template <class T>
void mla_split_forward(Tensor k_THN, Tensor v_THV, Tensor kv_TM, Tensor k_rope_TR, const MlaWidths& widths);
template <class T>
void mla_split_backward(Tensor dkv_TM, Tensor dk_rope_TR, Tensor dk_THN, Tensor dv_THV,
                        const MlaWidths& widths);

template <class T>
void mla_absorb_query(Tensor q_latent_THL, Tensor q_THN, Tensor kv_b_MC, const MlaWidths& widths);
template <class T>
void mla_expand_value(Tensor out_THV, Tensor latent_THC, Tensor kv_b_MC, const MlaWidths& widths);

}  // namespace switchyard::ops::cpu
