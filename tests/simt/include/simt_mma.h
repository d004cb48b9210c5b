// The tensor-core and copy instructions that cuda/mma.h wraps, computed from the fragments of all lanes of a
// warp. Fragment layouts: PTX ISA, "Matrix Fragments for mma.m16n8k16" and "ldmatrix".
#pragma once

#include <cuda_bf16.h>

namespace simt {

// d += a b:  a is 16 x 16, b is 16 x 8, d is 16 x 8. Lane l has group g = l / 4 and place p = l % 4.
//   a[i] (of 4, two bf16 each): row g + 8 (i % 2), columns 2p + 8 (i / 2) and the next;  b[i] (of 2): column g,
//   rows 2p + 8 i and the next;  d[i] (of 4): row g + 8 (i / 2), column 2p + i % 2
void mma_16x8x16(float* d, const unsigned* a, const unsigned* b);

// r: of 4. row: the address of 8 bf16, of lane l row l % 8 of matrix l / 8.
void ldmatrix_x4(unsigned* r, const void* row);
void ldmatrix_x4_transposed(unsigned* r, const void* row);

}  // namespace simt
