// Matrix products with a weight: dense, and grouped by expert.
//   T rows, K inputs, N outputs, E experts, R routed rows, F width of an expert
#pragma once

#include <string>

#include "ops/operator.h"

namespace switchyard::ops {

// All products below are in ctx.matmul's precision. False where the device has no instructions for it and
// rounds operands by others: the same values, but no faster than float32.
bool has_fast_matmul(MatmulType type, Device device);

// Why the device cannot multiply in MatmulType::e4m3, as a clause; empty: it can.
std::string e4m3_unavailable_reason(Device device);
namespace cuda {
std::string e4m3_unavailable_reason();
}

// MatmulType::e4m3, as in DeepSeek-V3 (arXiv 2412.19437, section 3.3): an operand is divided by float32 scales
// and rounded to E4M3, FP8 with 4 bits of exponent and 3 of mantissa. A scale is 1/448 of the largest absolute
// value that it is for, so that this becomes E4M3's largest. Weights have one for each block of 128 x 128,
// inputs and gradients of outputs one for each 128 of a row, along which they are summed; in weight gradients,
// whose sums are over rows, one for each 128 rows of a column, of each expert from its first row on. Each 128
// products are summed, scaled and added up in float32. Rounding is to nearest, ties to even; a block of values
// below 2^-100 is divided as one of 2^-100.

enum class Write { set, add };

// out_TN = in_TK weight_NK^T.   Rows of in and out may be strided.
SY_OPERATOR(linear_forward, Tensor out_TN, Tensor in_TK, Tensor weight_NK, Write write, Context& ctx);
// out_TN = addend_TN + in_TK weight_NK^T.   addend_TN may be out_TN: then it is Write::add.
SY_OPERATOR(linear_forward_add, Tensor out_TN, Tensor addend_TN, Tensor in_TK, Tensor weight_NK, Context& ctx);
// din_TK = dout_TN weight_NK
SY_OPERATOR(linear_backward_input, Tensor din_TK, Tensor dout_TN, Tensor weight_NK, Write write, Context& ctx);
// dweight_NK += dout_TN^T in_TK
SY_OPERATOR(linear_backward_weight, Tensor dweight_NK, Tensor dout_TN, Tensor in_TK, Context& ctx);

// The same with one weight an expert: rows [offset_Ep[e], offset_Ep[e+1]) belong to expert e, offset_Ep i32
// [E+1]. An expert without rows reads and writes nothing; rows from offset_Ep[E] on are not touched.
SY_OPERATOR(grouped_linear_forward, Tensor out_RN, Tensor in_RK, Tensor weight_ENK, Tensor offset_Ep,
            Context& ctx);
// grouped_linear_forward to gate_up_R2F, then expert_swiglu_forward (ops/swiglu.h) to act_RF. On the device one
// pass where the layout lets it be: the gates and ups that the backward pass wants are not read again.
SY_OPERATOR(grouped_gate_up_forward, Tensor act_RF, Tensor gate_up_R2F, Tensor in_RK, Tensor weight_E2FK,
            Tensor weight_R, Tensor offset_Ep, Context& ctx);
SY_OPERATOR(grouped_linear_backward_input, Tensor din_RK, Tensor dout_RN, Tensor weight_ENK, Tensor offset_Ep,
            Context& ctx);
// grouped_linear_backward_input of the experts' down product, then expert_swiglu_backward: dgate_up_R2F and
// dweight_R set. On the device one pass where the layout lets it be. dgate_up_R2F may be gate_up_R2F.
SY_OPERATOR(grouped_down_backward, Tensor dgate_up_R2F, Tensor dweight_R, Tensor dout_RN, Tensor weight_ENF,
            Tensor gate_up_R2F, Tensor weight_R, Tensor offset_Ep, Context& ctx);
SY_OPERATOR(grouped_linear_backward_weight, Tensor dweight_ENK, Tensor dout_RN, Tensor in_RK, Tensor offset_Ep,
            Context& ctx);  // added

}  // namespace switchyard::ops
