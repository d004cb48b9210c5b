// Tensor-core products, the copies that feed them and exponentials, one function an instruction of sm_80 and
// newer. The emulator has each in plain C++ (tests/simt/include/simt_mma.h).   PTX ISA: mma.m16n8k16, ldmatrix,
// cp.async
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#ifdef SWITCHYARD_SIMT
#include "simt_mma.h"
#endif

namespace switchyard::ops::cuda {

#ifndef SWITCHYARD_SIMT
__device__ __forceinline__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}
#endif

// 2^x to two units in the last place; results too small for a normal float are zero.
__device__ __forceinline__ float approximate_exp2(float x) {
#ifdef SWITCHYARD_SIMT
  return std::exp2(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// d += a b for a 16 x 16 tile of bf16 (row-major fragments), b 16 x 8 (column-major), d 16 x 8 float. All 32
// lanes.
//   With g = lane / 4 and p = lane % 4:  a[i] holds row g + 8 (i % 2), columns 2p + 8 (i / 2) and the next;
//   b[i] column g, rows 2p + 8 i and the next;  d[i] row g + 8 (i / 2), column 2p + i % 2.
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef SWITCHYARD_SIMT
  simt::mma_16x8x16(d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Four 8 x 8 matrices of bf16 from shared memory. Lane l gives the 16-byte aligned address of row l % 8 of
// matrix l / 8 and receives of each matrix m the pair at row l / 4, columns 2 (l % 4) and the next. All 32
// lanes.
__device__ __forceinline__ void ldmatrix_x4(unsigned (&r)[4], const void* row) {
#ifdef SWITCHYARD_SIMT
  simt::ldmatrix_x4(r, row);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
#endif
}
// The same of the matrices' transposes: the pair at column l / 4, rows 2 (l % 4) and the next.
__device__ __forceinline__ void ldmatrix_x4_transposed(unsigned (&r)[4], const void* row) {
#ifdef SWITCHYARD_SIMT
  simt::ldmatrix_x4_transposed(r, row);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
#endif
}

// Starts a copy of 16 bytes to shared memory, of which the first `bytes` (0 to 16) are read and the rest are
// zeros. Both addresses are 16-byte aligned. It has arrived when its group was waited for and the block has met
// in a barrier.
__device__ __forceinline__ void async_copy_16(void* to_shared, const void* from, int bytes = 16) {
#ifdef SWITCHYARD_SIMT
  simt::async_copy(to_shared, from, static_cast<unsigned>(bytes), static_cast<unsigned>(16 - bytes));
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to_shared)), "l"(from),
               "r"(bytes)
               : "memory");
#endif
}
__device__ __forceinline__ void async_commit() {
#ifdef SWITCHYARD_SIMT
  simt::async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int kGroupsLeft>
__device__ __forceinline__ void async_wait() {
#ifdef SWITCHYARD_SIMT
  simt::async_wait(kGroupsLeft);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
#endif
}

}  // namespace switchyard::ops::cuda
