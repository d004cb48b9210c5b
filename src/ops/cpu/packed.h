// Matrix products whose operands are copied into the order in which registers take them, on processors with
// AVX-512. An output's sum has the same order whatever M, N and the number of threads are: pieces of K, each
// from its first element on, added up in ascending order. So an expert's row has the same bits in any company.
#pragma once

#include <cstdint>

#include "ops/cpu/gemm.h"

namespace switchyard::ops::cpu {

#ifdef __AVX512F__
constexpr bool kHasPacked = true;
#else
constexpr bool kHasPacked = false;
#endif
#ifdef __AVX512BF16__
constexpr bool kHasPackedBf16 = true;
#else
constexpr bool kHasPackedBf16 = false;
#endif

// C[M,N] = op(A)[M,K] op(B)[K,N], added to what is in C with `add`; m, n, k > 0. Outside a parallel region by
// all threads, inside one by the caller's alone. Without kHasPacked they may not be called.
void packed_f32(Trans trans_a, Trans trans_b, std::int64_t m, std::int64_t n, std::int64_t k, const float* a,
                std::int64_t lda, const float* b, std::int64_t ldb, bool add, float* c, std::int64_t ldc);
// The same with A and B rounded to bfloat16 (to nearest, ties to even; subnormals count as zero), products and
// sums in float32. Needs kHasPackedBf16.
void packed_bf16(Trans trans_a, Trans trans_b, std::int64_t m, std::int64_t n, std::int64_t k, const float* a,
                 std::int64_t lda, const float* b, std::int64_t ldb, bool add, float* c, std::int64_t ldc);

}  // namespace switchyard::ops::cpu
