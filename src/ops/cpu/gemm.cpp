#include "ops/cpu/gemm.h"

#include <oneapi/dnnl/dnnl.h>

#include <algorithm>
#include <new>

#include "core/error.h"

namespace switchyard::ops::cpu {

namespace {

// What an empty sum leaves: C = beta * C.
template <class T>
void scale_rows(std::int64_t m, std::int64_t n, T beta, T* c, std::int64_t ldc) {
  for (std::int64_t i = 0; i < m; ++i)
    for (std::int64_t j = 0; j < n; ++j) c[i * ldc + j] = beta == T(0) ? T(0) : beta * c[i * ldc + j];
}

}  // namespace

template <>
void gemm<float>(Trans trans_a, Trans trans_b, std::int64_t m, std::int64_t n, std::int64_t k, float alpha,
                 const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c,
                 std::int64_t ldc) {
  if (m == 0 || n == 0) return;
  if (k == 0) return scale_rows(m, n, beta, c, ldc);
  if (m <= kSkinnyRows && trans_a == Trans::no)
    return (trans_b == Trans::yes ? skinny_transposed : skinny_plain)(m, n, k, alpha, a, lda, b, ldb, beta, c,
                                                                      ldc);
  const dnnl_status_t status = dnnl_sgemm(trans_a == Trans::yes ? 'T' : 'N', trans_b == Trans::yes ? 'T' : 'N',
                                          m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  if (status == dnnl_out_of_memory) throw std::bad_alloc();
  SY_CHECK(status == dnnl_success, "dnnl_sgemm({} x {} x {}) returned {}", m, n, k, static_cast<int>(status));
}

template <>
void gemm<double>(Trans trans_a, Trans trans_b, std::int64_t m, std::int64_t n, std::int64_t k, double alpha,
                  const double* a, std::int64_t lda, const double* b, std::int64_t ldb, double beta, double* c,
                  std::int64_t ldc) {
  if (k == 0) return scale_rows(m, n, beta, c, ldc);
  const std::int64_t a_row = trans_a == Trans::yes ? 1 : lda, a_col = trans_a == Trans::yes ? lda : 1;
  const std::int64_t b_row = trans_b == Trans::yes ? 1 : ldb, b_col = trans_b == Trans::yes ? ldb : 1;
#pragma omp parallel for schedule(static) if (m * n * k > 1 << 16)
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (std::int64_t p = 0; p < k; ++p) sum += a[i * a_row + p * a_col] * b[p * b_row + j * b_col];
      c[i * ldc + j] = alpha * sum + (beta == 0 ? 0.0 : beta * c[i * ldc + j]);
    }
  }
}

template <>
void multiply<float>(MatmulType type, Trans trans_a, Trans trans_b, std::int64_t m, std::int64_t n,
                     std::int64_t k, const float* a, std::int64_t lda, const float* b, std::int64_t ldb,
                     bool add, float* c, std::int64_t ldc) {
  if (type == MatmulType::bf16 && m > 0 && n > 0 && k > 0)
    return gemm_bf16(trans_a, trans_b, m, n, k, a, lda, b, ldb, add, c, ldc);
  gemm<float>(trans_a, trans_b, m, n, k, 1.0f, a, lda, b, ldb, add ? 1.0f : 0.0f, c, ldc);
}

template <>
void multiply<double>(MatmulType, Trans trans_a, Trans trans_b, std::int64_t m, std::int64_t n, std::int64_t k,
                      const double* a, std::int64_t lda, const double* b, std::int64_t ldb, bool add, double* c,
                      std::int64_t ldc) {
  gemm<double>(trans_a, trans_b, m, n, k, 1.0, a, lda, b, ldb, add ? 1.0 : 0.0, c, ldc);
}

}  // namespace switchyard::ops::cpu
