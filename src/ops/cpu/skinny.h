// Products of a few rows, as in generating text: bound by reading B once, not by arithmetic. gemm.h hands them
// over; every output is summed in an order of its own that neither M nor the number of threads changes.
#pragma once

#include <cstdint>

namespace switchyard::ops::cpu {

// Up to so many rows a product of this kind is faster than oneDNN's, or as fast.
constexpr std::int64_t kSkinnyRows = 8;

// C[M,N] = alpha * A[M,K] B[N,K]^T + beta * C, M <= kSkinnyRows. With beta == 0, C is not read.
void skinny_transposed(std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const float* a,
                       std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c,
                       std::int64_t ldc);
// C[M,N] = alpha * A[M,K] B[K,N] + beta * C
void skinny_plain(std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const float* a, std::int64_t lda,
                  const float* b, std::int64_t ldb, float beta, float* c, std::int64_t ldc);

// Outputs that one piece of work covers: small enough to share out, large enough to be worth fetching.
constexpr std::int64_t kSkinnyColumns = 64;

}  // namespace switchyard::ops::cpu
