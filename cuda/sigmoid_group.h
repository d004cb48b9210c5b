// Scores of the sigmoid router and its choice by groups on the device; shapes and formulas:
// ops/sigmoid_group.h. All in f32, expert_TK i32.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cuda {

void sigmoid_forward(Tensor score_TE, Tensor logit_TE, Context& ctx);
void sigmoid_backward(Tensor dlogit_TE, Tensor dscore_TE, Tensor score_TE, Context& ctx);
void group_choice(Tensor choice_TE, Tensor score_TE, Tensor bias_E, std::int64_t n_group,
                  std::int64_t topk_group, Context& ctx);
void gather_slots(Tensor chosen_TK, Tensor score_TE, Tensor expert_TK, Context& ctx);
void row_share_forward(Tensor prob_TE, Tensor score_TE, Context& ctx);
void row_share_backward(Tensor dscore_TE, Tensor dprob_TE, Tensor prob_TE, Tensor score_TE, Context& ctx);

}  // namespace switchyard::ops::cuda
