// A router's scores and its choice of experts on the device; shapes and formulas: ops/topk.h. All in f32,
// expert_TK and skip_T i32.
#pragma once

#include "core/context.h"

namespace switchyard::cuda {

void softmax_forward(Tensor prob_TE, Tensor lse_T, Tensor logit_TE, Context& ctx);
void softmax_backward(Tensor dlogit_TE, Tensor dprob_TE, Tensor prob_TE, Context& ctx);
void top_k(Tensor expert_TK, Tensor chosen_TK, Tensor score_TE, Tensor skip_T, Context& ctx);

}  // namespace switchyard::cuda
