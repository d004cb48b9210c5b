// What lies between a router's scores and its losses, on the device; shapes and formulas: ops/routing.h. All in
// f32 but for the sums over tokens, which are f64, and experts, counts and tokens, i32. dprob_BE may lie on the
// host.
#pragma once

#include "core/context.h"
#include "core/slot_weighting.h"

namespace switchyard::ops::cuda {

void slot_weights_forward(Tensor weight_TK, Tensor chosen_TK, Tensor expert_TK, const SlotWeighting& weighting,
                          Context& ctx);
void slot_weights_backward(Tensor dscore_TE, Tensor dweight_TK, Tensor weight_TK, Tensor chosen_TK,
                           Tensor expert_TK, const SlotWeighting& weighting, Context& ctx);
// The order of the sums: in each run of 64 tokens of a sequence, or of a 128th of a longer one than 8192, in
// token order (lse2: by lanes, in pairs), then the runs in token order.
void routing_sums(Tensor count_BE, Tensor prob_sum_BE, Tensor lse2_sum_B, Tensor expert_TK, Tensor prob_TE,
                  Tensor lse_T, Tensor token_T, Context& ctx);
void add_sequence_gradient(Tensor dprob_TE, Tensor dprob_BE, Tensor token_T, Context& ctx);
void z_loss_backward(Tensor dlogit_TE, Tensor prob_TE, Tensor lse_T, Tensor token_T, double dz, Context& ctx);

}  // namespace switchyard::ops::cuda
