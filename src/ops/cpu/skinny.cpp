#include "ops/cpu/gemm.h"

#include <omp.h>

#include <algorithm>
#include <cstring>

// Legend: M rows, N outputs, K inputs.

namespace switchyard::ops::cpu {

namespace {

// Multiplications below which a team of threads costs more than it saves.
constexpr std::int64_t kParallelProducts = 1 << 15;

// Products that are added up one after the other before their sum joins the others': over a vocabulary of 2^17
// one float32 sum would be off by some 4e-4 of itself.
constexpr std::int64_t kSummed = 512;

constexpr std::int64_t kWidth = 8;
typedef float Vector __attribute__((vector_size(kWidth * sizeof(float))));

inline Vector load(const float* from) {
  Vector value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// M dot products with one row of B. Element k goes to lane k mod 16; lanes are folded in a fixed order, then
// the rest that fills no lanes is added.
template <int M>
inline void dots(std::int64_t k, const float* a, std::int64_t lda, const float* b, float* out) {
  Vector even[M] = {}, odd[M] = {};
  std::int64_t p = 0;
  for (; p + 2 * kWidth <= k; p += 2 * kWidth) {
    const Vector b_even = load(b + p), b_odd = load(b + p + kWidth);
    for (int i = 0; i < M; ++i) {
      even[i] += load(a + i * lda + p) * b_even;
      odd[i] += load(a + i * lda + p + kWidth) * b_odd;
    }
  }
  for (int i = 0; i < M; ++i) {
    const Vector sums = even[i] + odd[i];
    float sum = ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
    for (std::int64_t rest = p; rest < k; ++rest) sum += a[i * lda + rest] * b[rest];
    out[i] = sum;
  }
}

void dots_of_rows(std::int64_t m, std::int64_t k, const float* a, std::int64_t lda, const float* b,
                  float* out) {
  for (; m >= 4; m -= 4, a += 4 * lda, out += 4) dots<4>(k, a, lda, b, out);
  if (m == 3) dots<3>(k, a, lda, b, out);
  if (m == 2) dots<2>(k, a, lda, b, out);
  if (m == 1) dots<1>(k, a, lda, b, out);
}

// f(first, count) over pieces of n columns; by all threads where the work is worth it. Which thread takes which
// piece does not show in the result.
template <class F>
void for_each_columns(std::int64_t n, std::int64_t products, F&& f) {
  const std::int64_t pieces = (n + kSkinnyColumns - 1) / kSkinnyColumns;
#pragma omp parallel for schedule(dynamic, 1) if (products >= kParallelProducts && !omp_in_parallel())
  for (std::int64_t piece = 0; piece < pieces; ++piece) {
    const std::int64_t first = piece * kSkinnyColumns;
    f(first, std::min(kSkinnyColumns, n - first));
  }
}

}  // namespace

void skinny_transposed(std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const float* a,
                       std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c,
                       std::int64_t ldc) {
  for_each_columns(n, m * n * k, [=](std::int64_t first, std::int64_t count) {
    for (std::int64_t j = first; j < first + count; ++j) {
      float sum_M[kSkinnyRows];
      dots_of_rows(m, k, a, lda, b + j * ldb, sum_M);
      for (std::int64_t i = 0; i < m; ++i) {
        float* out = c + i * ldc + j;
        *out = beta == 0 ? alpha * sum_M[i] : alpha * sum_M[i] + beta * *out;
      }
    }
  });
}

void skinny_plain(std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const float* a, std::int64_t lda,
                  const float* b, std::int64_t ldb, float beta, float* c, std::int64_t ldc) {
  for_each_columns(n, m * n * k, [=](std::int64_t first, std::int64_t count) {
    float sum_MN[kSkinnyRows][kSkinnyColumns] = {};
    for (std::int64_t p0 = 0; p0 < k; p0 += kSummed) {
      float part_MN[kSkinnyRows][kSkinnyColumns] = {};
      for (std::int64_t p = p0; p < std::min(p0 + kSummed, k); ++p) {
        const float* b_row = b + p * ldb + first;
        for (std::int64_t i = 0; i < m; ++i) {
          const float factor = a[i * lda + p];
          float* part = part_MN[i];
#pragma omp simd
          for (std::int64_t j = 0; j < count; ++j) part[j] += factor * b_row[j];
        }
      }
      for (std::int64_t i = 0; i < m; ++i)
        for (std::int64_t j = 0; j < count; ++j) sum_MN[i][j] += part_MN[i][j];
    }
    for (std::int64_t i = 0; i < m; ++i) {
      float* out = c + i * ldc + first;
      for (std::int64_t j = 0; j < count; ++j)
        out[j] = beta == 0 ? alpha * sum_MN[i][j] : alpha * sum_MN[i][j] + beta * out[j];
    }
  });
}

}  // namespace switchyard::ops::cpu
