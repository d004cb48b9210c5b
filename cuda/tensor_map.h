// Descriptions of matrices from which bulk copies (wgmma.h) take boxes, or into which they bring them.
#pragma once

#include <cstdint>

#include "core/tensor.h"

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

constexpr int kBoxBytes = 128;   // of a box's line
constexpr int kBoxColumns = 64;  // of every box of bf16

// `matrices` matrices of bf16, or of float32, [rows, columns]; strides in elements. All sizes are at least 1.
struct BoxedMatrices {
  const void* data;
  std::int64_t matrices, rows, columns, stride, matrix_stride;
  DType dtype = DType::bf16;
};
// Whether bulk copies can move their boxes: they ask for 16-byte aligned rows.
bool fits_tensor_map(const BoxedMatrices& m);
// A box is box_rows rows of one matrix with kBoxBytes of each, and lies in shared memory as lines of 128 bytes,
// of which the 16-byte pieces change places (128-byte swizzle); box_rows <= 256. What lies outside a matrix is
// zero in a box that is taken, and left out of one that is brought.
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
