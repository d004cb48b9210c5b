// Dense matrix products by cuBLASLt.
#pragma once

#include "core/context.h"
#include "gemm_form.h"

namespace switchyard::ops::cuda {

// c_MN = a b, plus the addend where it is defined (it may be c_MN), for matrices with one element at least, on
// the run's stream. a and b f32 or both bf16, c of
// their type or f32; sums in float32, of f32 operands as they are (no TF32). The same call gives the same bits.
// False, and nothing done, where the library has no algorithm for matrices that lie so.
bool cublaslt_multiply(const char* op, GemmLayout layout, const Tensor& c_MN, const Tensor& a, const Tensor& b,
                       const Tensor& addend_MN, Context& ctx);

}  // namespace switchyard::ops::cuda
