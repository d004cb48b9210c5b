// Products of matrices: how operands lie in memory, and who else multiplies them beside gemm_tile.h.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cuda {

// c_MN = a b, summed over K. All matrices are row-major; the names say the rows and columns that are stored.
enum class GemmLayout {
  nt,  // a_MK, b_NK: a layer's output from its input and weight
  nn,  // a_MK, b_KN: the input's gradient
  tn,  // a_KM, b_KN: the weight's gradient
};
// Whether neighbours in memory are neighbours in K.
constexpr bool a_along_k(GemmLayout layout) { return layout != GemmLayout::tn; }
constexpr bool b_along_k(GemmLayout layout) { return layout == GemmLayout::nt; }

// Dense matrix products by cuBLASLt.

// c_MN = a b, plus the addend where it is defined (it may be c_MN), for matrices with one element at least, on
// the run's stream. a and b f32 or both bf16, c of their type or f32; sums in float32, of f32 operands as they
// are (no TF32). The same call gives the same bits. False, and nothing done, where the library has no algorithm
// for matrices that lie so.
bool cublaslt_multiply(const char* op, GemmLayout layout, const Tensor& c_MN, const Tensor& a, const Tensor& b,
                       const Tensor& addend_MN, Context& ctx);

// Products of bf16 matrices by the instructions of compute capability 9.0.

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
