// cuDNN's fused attention in place of attention.cu's kernels: bf16, causal or with a sliding window, the same
// bits in every run. Without cuDNN (SWITCHYARD_HAS_CUDNN) nothing of this but its version
// may be asked for.
#pragma once

#include <string>

#include "ops/attention.h"

namespace switchyard::ops::cuda {

#ifdef SWITCHYARD_HAS_CUDNN
constexpr bool kHasCudnn = true;
std::string cudnn_version();  // "9.12.0"
#else
constexpr bool kHasCudnn = false;
inline std::string cudnn_version() { return ""; }
#endif

// Why cuDNN cannot compute both functions below for such a shape on this device; empty: it can.
std::string attention_cudnn_unavailable_reason(const AttentionShape& shape);

// As in ops/attention.h, shape.window being the mask. Rows begin at multiples of 16 bytes.
void attention_cudnn_forward(Tensor out_THM, Tensor lse_TH, Tensor q_THN, Tensor k_TGN, Tensor v_TGM,
                             const AttentionShape& shape, Context& ctx);
void attention_cudnn_backward(Tensor dq_THN, Tensor dk_TGN, Tensor dv_TGM, Tensor dout_THM, Tensor out_THM,
                              Tensor lse_TH, Tensor q_THN, Tensor k_TGN, Tensor v_TGM,
                              const AttentionShape& shape, Context& ctx);

// lse_TH of n sequences, contiguous, as cuDNN's gradients read it: lse_BHS[b, h, s] = lse_TH[b S + s, h]. Set.
// Defined beside the kernels (attention.cu), with or without cuDNN.
void attention_lse_by_head(Tensor lse_BHS, Tensor lse_TH, Context& ctx);

}  // namespace switchyard::ops::cuda
