// Matrix products on row-major matrices. Called outside a parallel region they use all threads; called inside
// one they use the calling thread alone, so that many small products can run side by side. The result is the
// same bits for the same call on the same number of threads.
#pragma once

#include <cstdint>

#include "core/context.h"
#include "core/vector_level.h"

namespace switchyard::ops::cpu {

enum class Trans { no, yes };

// C[M,N] = alpha * op(A)[M,K] op(B)[K,N] + beta * C, where op transposes if asked. lda, ldb, ldc: elements from
// one stored row to the next. With beta == 0, C is not read. float: oneDNN, or skinny_* below for a few rows;
// double: plain loops, for tests.
template <class T>
void gemm(Trans trans_a, Trans trans_b, std::int64_t m, std::int64_t n, std::int64_t k, T alpha, const T* a,
          std::int64_t lda, const T* b, std::int64_t ldb, T beta, T* c, std::int64_t ldc);

// The same with alpha 1, beta 0 or (`add`) 1, in the precision that the run has chosen. bf16: A and B are
// rounded to bfloat16 (to nearest, ties to even), products are summed in float32. In double the type is without
// effect.
template <class T>
void multiply(MatmulType type, Trans trans_a, Trans trans_b, std::int64_t m, std::int64_t n, std::int64_t k,
              const T* a, std::int64_t lda, const T* b, std::int64_t ldb, bool add, T* c, std::int64_t ldc);

// Products of float matrices through bfloat16 operands: `multiply` for MatmulType::bf16.

// Whether this processor multiplies bfloat16 itself, and faster than float32.
bool has_bf16_products();
// What oneDNN's products use on this processor.
VectorLevel library_level();

// Rows of A with which B's rounding is a small part of a product; the fewer, the sooner its result is at hand,
// in the cache.
std::int64_t bf16_piece_rows();

// Takes the fastest of those below, or oneDNN's where it has tiles (AMX).
void gemm_bf16(Trans trans_a, Trans trans_b, std::int64_t m, std::int64_t n, std::int64_t k, const float* a,
               std::int64_t lda, const float* b, std::int64_t ldb, bool add, float* c, std::int64_t ldc);

// Operands are copied into the order in which registers take them, rounded on the way (subnormals may count as
// zero). An output's sum has the same order whatever M, N and the number of threads are: pieces of K, each from
// its first element on, added up in ascending order. May be called where kHasPacked; pairs where kHasPairs.
enum class PackedWord {
  f32,      // as they are
  rounded,  // rounded to bfloat16, kept and multiplied as float32
  pair,     // two bfloat16, multiplied and added at once
};
void gemm_packed(PackedWord word, Trans trans_a, Trans trans_b, std::int64_t m, std::int64_t n, std::int64_t k,
                 const float* a, std::int64_t lda, const float* b, std::int64_t ldb, bool add, float* c,
                 std::int64_t ldc);
// The fastest word here for products of this type; those in FP8 have none of their own.
PackedWord packed_word(MatmulType type);
#ifdef __AVX512F__
constexpr bool kHasPacked = true;
#else
constexpr bool kHasPacked = false;
#endif
#ifdef __AVX512BF16__
constexpr bool kHasPairs = true;
#else
constexpr bool kHasPairs = false;
#endif

// The same values up to the order of the sum, on any processor and no faster than float32: operands are rounded
// to bfloat16 and multiplied in float32, where the product of two bfloat16 is exact.
void gemm_bf16_rounded(Trans trans_a, Trans trans_b, std::int64_t m, std::int64_t n, std::int64_t k,
                       const float* a, std::int64_t lda, const float* b, std::int64_t ldb, bool add, float* c,
                       std::int64_t ldc);

// Products of a few rows, as in generating text: bound by reading B once, not by arithmetic. gemm() hands
// them over; every output is summed in an order of its own that neither M nor the number of threads changes.

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
