// Descriptions of matrices from which bulk copies (wgmma.h) take boxes.
#pragma once

#include <cstdint>

#ifdef SWITCHYARD_SIMT
#include "simt_wgmma.h"
#else
#include <cuda.h>
#endif

namespace switchyard::ops::cuda {

#ifdef SWITCHYARD_SIMT
using TensorMap = simt::TensorMap;
#else
using TensorMap = CUtensorMap;
#endif

constexpr int kBoxColumns = 64;  // of every box: bf16 in a line of 128 bytes

// `matrices` matrices of bf16 [rows, columns]; strides in elements. All sizes are at least 1.
struct BoxedMatrices {
  const void* data;
  std::int64_t matrices, rows, columns, stride, matrix_stride;
};
// Whether bulk copies can take boxes from them: they ask for 16-byte aligned rows.
bool fits_tensor_map(const BoxedMatrices& m);
// A box is [box_rows, kBoxColumns] of one matrix and lies in shared memory as lines of 128 bytes, of which the
// 16-byte pieces change places (128-byte swizzle); box_rows <= 256. What lies outside a matrix is zero in a
// box.
TensorMap make_tensor_map(const char* op, const BoxedMatrices& m, int box_rows);

// `matrices` times `rows` rows of bf16, each of `heads` pieces of `columns` values side by side; strides in
// elements.
struct BoxedHeads {
  const void* data;
  std::int64_t matrices, rows, heads, columns, stride, matrix_stride;
};
bool fits_tensor_map(const BoxedHeads& m);
// A box is kBoxColumns of box_heads heads of each of box_rows rows of one matrix: a line for each head, row by
// row, and otherwise as above; box_rows and box_heads <= 256.
TensorMap make_tensor_map(const char* op, const BoxedHeads& m, int box_rows, int box_heads);

}  // namespace switchyard::ops::cuda
