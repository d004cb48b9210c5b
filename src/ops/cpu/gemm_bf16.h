// Products of float matrices through bfloat16 operands: ops/cpu/gemm.h's `multiply` for MatmulType::bf16.
#pragma once

#include <cstdint>

#include "ops/cpu/gemm.h"

namespace switchyard::ops::cpu {

// Whether this processor multiplies bfloat16 itself (AVX-512 is needed).
bool has_bf16_products();

// Takes the one below where it does not.
void gemm_bf16(Trans trans_a, Trans trans_b, std::int64_t m, std::int64_t n, std::int64_t k, const float* a,
               std::int64_t lda, const float* b, std::int64_t ldb, bool add, float* c, std::int64_t ldc);

// The same values up to the order of the sum, on any processor and no faster than float32: operands are rounded
// to bfloat16 and multiplied in float32, where the product of two bfloat16 is exact.
void gemm_bf16_rounded(Trans trans_a, Trans trans_b, std::int64_t m, std::int64_t n, std::int64_t k,
                       const float* a, std::int64_t lda, const float* b, std::int64_t ldb, bool add, float* c,
                       std::int64_t ldc);

}  // namespace switchyard::ops::cpu
