// Matrix products on row-major matrices. Called outside a parallel region they use all threads; called inside
// one they use the calling thread alone, so that many small products can run side by side. The result is the
// same bits for the same call on the same number of threads.
#pragma once

#include <cstdint>

#include "core/context.h"

namespace switchyard::ops::cpu {

enum class Trans { no, yes };

// C[M,N] = alpha * op(A)[M,K] op(B)[K,N] + beta * C, where op transposes if asked. lda, ldb, ldc: elements from
// one stored row to the next. With beta == 0, C is not read. float: oneDNN, or skinny.h for a few rows; double:
// plain loops, for tests.
template <class T>
void gemm(Trans trans_a, Trans trans_b, std::int64_t m, std::int64_t n, std::int64_t k, T alpha, const T* a,
          std::int64_t lda, const T* b, std::int64_t ldb, T beta, T* c, std::int64_t ldc);

// The same with alpha 1, beta 0 or (`add`) 1, in the precision that the run has chosen. bf16: A and B are
// rounded to bfloat16 (to nearest, ties to even), products are summed in float32. In double the type is without
// effect.
template <class T>
void multiply(MatmulType type, Trans trans_a, Trans trans_b, std::int64_t m, std::int64_t n, std::int64_t k,
              const T* a, std::int64_t lda, const T* b, std::int64_t ldb, bool add, T* c, std::int64_t ldc);

}  // namespace switchyard::ops::cpu
