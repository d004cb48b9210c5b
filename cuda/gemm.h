// Products of matrices: how operands lie in memory, and who else multiplies them beside gemm_tile.h.
#pragma once

#include <string>

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

// A matrix of a product; or what each expert has one of its own of, [E, rows, columns]. Strides in elements.
struct Matrix {
  void* data;
  DType dtype;
  std::int64_t matrices, rows, columns, stride, matrix_stride;

  Matrix(const Tensor& t)
      : data(t.raw()),
        dtype(t.dtype()),
        matrices(t.shape().rank() == 3 ? t.dim(0) : 1),
        rows(t.shape().rank() == 3 ? t.dim(1) : t.dim(0)),
        columns(t.shape().rank() == 3 ? t.dim(2) : t.dim(1)),
        stride(t.shape().rank() == 3 ? columns : t.row_stride()),
        matrix_stride(t.shape().rank() == 3 ? t.row_stride() : rows * stride) {}
  // Whether every row begins at a multiple of so many bytes, and would were there more.
  bool rows_begin_at(std::int64_t bytes) const {
    const std::int64_t size = size_of(dtype);
    return reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(bytes) == 0 &&
           stride * size % bytes == 0 && (matrices <= 1 || matrix_stride * size % bytes == 0);
  }
  // Whether it can be read or written so many elements at once, each row to its end.
  bool is_of_pieces(std::int64_t elements) const {
    return columns % elements == 0 && rows_begin_at(elements * size_of(dtype));
  }
  bool packs() const { return is_of_pieces(16 / size_of(dtype)); }
};

// Dense matrix products by cuBLASLt.

#ifndef SWITCHYARD_SIMT
std::string cublas_version();  // "13.0.2"
#else
inline std::string cublas_version() { return ""; }  // the emulator has none
#endif

// c_MN = a b, plus the addend where it is defined (it may be c_MN), for matrices with one element at least, on
// the run's stream. a and b f32 or both bf16, c of their type or f32; sums in float32, of f32 operands as they
// are (no TF32). The same call gives the same bits. False, and nothing done, where the library has no algorithm
// for matrices that lie so.
bool cublaslt_multiply(const char* op, GemmLayout layout, const Matrix& c_MN, const Matrix& a, const Matrix& b,
                       const Tensor& addend_MN, Context& ctx);

// Products of bf16 matrices by the instructions of compute capability 9.0.

// c = or += a b, dense or grouped by expert as gemm_tile.h has it: offset_Ep on the device, null for one
// product; what each expert has one of is [E, rows, columns]. Sums in f32, c f32 or bf16, the same bits in
// every run. False, and nothing done, where the device is of another compute capability, the operands are not
// bf16, their rows do not begin at multiples of 16 bytes, or c has an odd number of columns.
bool wgmma_multiply(const char* op, GemmLayout layout, const Matrix& c, const Matrix& a, const Matrix& b,
                    bool add, const int* offset_Ep, Context& ctx);

// ops::grouped_gate_up_forward for bf16 in the same way, in one pass. False, and nothing done, as above, and
// where act_RF and gate_up_R2F are not bf16.
bool wgmma_gate_up(const char* op, const Matrix& act_RF, const Matrix& gate_up_R2F, const Matrix& in_RK,
                   const Matrix& weight_E2FK, const Tensor& weight_R, const int* offset_Ep, Context& ctx);

// Products in E4M3 (ops/linear.h: MatmulType::e4m3) by the instructions of compute capability 9.0.

// c = a b, plus the addend where it is defined (it may be c), dense or grouped as above, for matrices with one
// element at least. a and b are f32 or bf16 and lie anyhow; c is f32 or bf16, with the addend of its type. The
// same bits in every run. Takes scratch space: a byte for each element of a and b, and a tile of 128 more for
// each expert where the sum is over rows.
void e4m3_multiply(const char* op, GemmLayout layout, const Matrix& c, const Matrix& a, const Matrix& b,
                   const Tensor& addend, const int* offset_Ep, Context& ctx);

}  // namespace switchyard::ops::cuda
