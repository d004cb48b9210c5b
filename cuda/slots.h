// Slots that a router leaves free, on the device; shapes and formulas: ops/slots.h. All in f32, expert_TK and
// count_T i32.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cuda {

void keep_prefix_sum(Tensor expert_TK, Tensor chosen_TK, double p, Context& ctx);
void keep_count(Tensor expert_TK, Tensor chosen_TK, Tensor count_T, Context& ctx);
void keep_finite(Tensor expert_TK, Tensor chosen_TK, Context& ctx);
void threshold_choice(Tensor choice_TE, Tensor score_TE, Tensor threshold_E, Context& ctx);
void slot_softmax_forward(Tensor weight_TK, Tensor chosen_TK, Tensor expert_TK, double scale, Context& ctx);
void slot_softmax_backward(Tensor dscore_TE, Tensor dweight_TK, Tensor weight_TK, Tensor expert_TK,
                           double scale, Context& ctx);

}  // namespace switchyard::ops::cuda
