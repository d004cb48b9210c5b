// Products of float matrices through bfloat16 operands: cpu/gemm.h's `multiply` for MatmulType::bf16.
#pragma once

#include <cstdint>

#include "cpu/gemm.h"

namespace switchyard::cpu {

void gemm_bf16(Trans trans_a, Trans trans_b, std::int64_t m, std::int64_t n, std::int64_t k, const float* a,
               std::int64_t lda, const float* b, std::int64_t ldb, bool add, float* c, std::int64_t ldc);

}  // namespace switchyard::cpu
