// The output layer and its cross entropy, fused and chunked: logits exist for a few hundred rows at a time.
//   T tokens, D width, V vocabulary
#pragma once

#include "ops/operator.h"

namespace switchyard::ops {

// z = x_TD[t] . weight_VD^T;  loss_T[t] = logsumexp(z) - z[target_T[t]], set; 0 where target_T[t] < 0 (not
// predicted).
//   target_T i32; x_TD, weight_VD, loss_T f32|f64.
SY_OPERATOR(classifier_forward, Tensor loss_T, Tensor x_TD, Tensor weight_VD, Tensor target_T, Context& ctx);

// The same together with the gradients of sum_t dloss * loss_T[t]: with dz = dloss * (softmax(z) -
// onehot(target)),
//   dx_TD = dz weight_VD, set;   dweight_VD += dz^T x_TD.   A row with target < 0 gives zeros.
SY_OPERATOR(classifier_forward_backward, Tensor loss_T, Tensor dx_TD, Tensor dweight_VD, Tensor x_TD,
            Tensor weight_VD, Tensor target_T, double dloss, Context& ctx);

// Rows whose logits exist at one time, and the operators in chunks of so many, on each backend.
namespace cpu {

std::int64_t classifier_chunk_rows(std::int64_t n_tokens, std::int64_t vocab_size);
void classifier_forward_in_chunks(Tensor loss_T, Tensor x_TD, Tensor weight_VD, Tensor target_T,
                                  std::int64_t chunk_rows, Context& ctx);
void classifier_forward_backward_in_chunks(Tensor loss_T, Tensor dx_TD, Tensor dweight_VD, Tensor x_TD,
                                           Tensor weight_VD, Tensor target_T, double dloss,
                                           std::int64_t chunk_rows, Context& ctx);

}  // namespace cpu

namespace cuda {

// memory_bytes: of the device.
std::int64_t classifier_chunk_rows(std::int64_t n_tokens, std::int64_t vocab_size, std::int64_t memory_bytes);
void classifier_forward_in_chunks(Tensor loss_T, Tensor x_TD, Tensor weight_VD, Tensor target_T,
                                  std::int64_t chunk_rows, Context& ctx);
void classifier_forward_backward_in_chunks(Tensor loss_T, Tensor dx_TD, Tensor dweight_VD, Tensor x_TD,
                                           Tensor weight_VD, Tensor target_T, double dloss,
                                           std::int64_t chunk_rows, Context& ctx);

}  // namespace cuda

}  // namespace switchyard::ops
