// The output layer and its cross entropy on the device; shapes and formulas: ops/classifier.h. x, weight and dx
// f32, or all bf16; loss_T and dweight_VD f32 always. Logits and softmaxes are f32; their gradient dz is
// rounded to the type of x.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cuda {

// Rows whose logits exist at one time.
std::int64_t classifier_chunk_rows(std::int64_t n_tokens, std::int64_t vocab_size);

void classifier_forward(Tensor loss_T, Tensor x_TD, Tensor weight_VD, Tensor target_T, Context& ctx);
void classifier_forward_backward(Tensor loss_T, Tensor dx_TD, Tensor dweight_VD, Tensor x_TD, Tensor weight_VD,
                                 Tensor target_T, double dloss, Context& ctx);
// The same in chunks of that many rows.
void classifier_forward_in_chunks(Tensor loss_T, Tensor x_TD, Tensor weight_VD, Tensor target_T,
                                  std::int64_t chunk_rows, Context& ctx);
void classifier_forward_backward_in_chunks(Tensor loss_T, Tensor dx_TD, Tensor dweight_VD, Tensor x_TD,
                                           Tensor weight_VD, Tensor target_T, double dloss,
                                           std::int64_t chunk_rows, Context& ctx);

}  // namespace switchyard::ops::cuda
