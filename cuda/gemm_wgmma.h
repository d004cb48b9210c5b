// Products of bf16 matrices by the instructions of compute capability 9.0.
#pragma once

#include "core/context.h"
#include "gemm_form.h"

namespace switchyard::ops::cuda {

// c = or += a b, dense or grouped by expert as gemm_tile.h has it: offset_Ep on the device, null for one
// product; what each expert has one of is [E, rows, columns]. Sums in f32, c f32 or bf16, the same bits in
// every run. False, and nothing done, where the device is of another compute capability, the operands are not
// bf16 or rows are not multiples of 16 bytes.
bool wgmma_multiply(const char* op, GemmLayout layout, const Tensor& c, const Tensor& a, const Tensor& b,
                    bool add, const int* offset_Ep, Context& ctx);

// ops::grouped_gate_up_forward for bf16 in the same way, in one pass. False, and nothing done, as above, and
// where act_RF and gate_up_R2F are not bf16.
bool wgmma_gate_up(const char* op, const Tensor& act_RF, const Tensor& gate_up_R2F, const Tensor& in_RK,
                   const Tensor& weight_E2FK, const Tensor& weight_R, const int* offset_Ep, Context& ctx);

}  // namespace switchyard::ops::cuda
