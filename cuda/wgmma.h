// Instructions of sm_90a: products of a warpgroup from shared memory, the bulk copies that feed them and take
// their sums away, and the barriers that say when those have arrived. One function an instruction; the emulator
// has each in plain C++ (tests/simt/include/simt_wgmma.h).   PTX ISA: wgmma, cp.async.bulk.tensor, mbarrier,
// fence.proxy
//
// Shared memory holds operands as lines of 128 bytes with 128-byte swizzle: of the line at a multiple of 1024
// bytes plus 128 r the 16-byte piece c lies at place c ^ (r % 8). Bulk copies write it so (tensor_map.h).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "launch.h"
#include "mma.h"
#include "tensor_map.h"

namespace switchyard::ops::cuda {

#ifdef SWITCHYARD_SIMT
inline unsigned shared_address(const void* p) { return simt::hopper().address_of(p); }
#endif

constexpr int kSwizzleSpan = 1024;  // bytes in which the swizzle repeats

// The dynamic shared memory from a multiple of kSwizzleSpan on; the launch asks for as much more.
template <class S>
__device__ __forceinline__ S& swizzled_shared() {
  auto* const bytes = static_cast<unsigned char*>(dynamic_shared());
  return *reinterpret_cast<S*>(bytes + (-shared_address(bytes) & (kSwizzleSpan - 1)));
}
template <class S>
constexpr std::size_t kSwizzledBytes = sizeof(S) + kSwizzleSpan;

// ---- barriers in shared memory ----
// A barrier's phase ends when as many have arrived as it was made for and all bytes expected have come. To wait
// for a parity is to wait for the end of the phase of that parity: phases count from 0, and parity 1 of a new
// barrier has passed.

struct Barrier {
  std::uint64_t state;
};

// One thread; then fence_proxy_async() before the barrier serves a bulk copy, __syncthreads() before others.
__device__ __forceinline__ void barrier_init(Barrier& barrier, int arrivals) {
#ifdef SWITCHYARD_SIMT
  simt::hopper().barrier_init(&barrier, static_cast<unsigned>(arrivals));
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals)
               : "memory");
#endif
}
__device__ __forceinline__ void barrier_arrive(Barrier& barrier) {
#ifdef SWITCHYARD_SIMT
  simt::hopper().barrier_arrive(&barrier, 0);
#else
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
#endif
}
// Arrives, and lets the phase wait for that many bytes of bulk copies.
__device__ __forceinline__ void barrier_arrive_expecting(Barrier& barrier, int bytes) {
#ifdef SWITCHYARD_SIMT
  simt::hopper().barrier_arrive(&barrier, static_cast<unsigned>(bytes));
#else
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)),
               "r"(bytes)
               : "memory");
#endif
}
__device__ __forceinline__ void barrier_wait(Barrier& barrier, unsigned parity) {
#ifdef SWITCHYARD_SIMT
  simt::hopper().barrier_wait(&barrier, parity);
#else
  unsigned passed = 0;
  while (passed == 0) {  // each try sleeps a while
    asm volatile(
        "{\n"
        ".reg .pred passed;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 passed, [%1], %2;\n"
        "selp.u32 %0, 1, 0, passed;\n"
        "}\n"
        : "=r"(passed)
        : "r"(shared_address(&barrier)), "r"(parity)
        : "memory");
  }
#endif
}
// Goes round kDepth places in shared memory, each with a barrier that says it is full and one that says it is
// empty. In each round the barriers' phase has the other parity.
template <int kDepth>
struct Ring {
  int stage = 0;
  unsigned parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage < kDepth) return;
    stage = 0;
    parity ^= 1;
  }
};
// Meets `threads` of the block's threads, whole warps; id 1 to 15 (__syncthreads() is 0).
__device__ __forceinline__ void sync_some(int id, int threads) {
#ifdef SWITCHYARD_SIMT
  simt::hopper().named_barrier(static_cast<unsigned>(id), static_cast<unsigned>(threads));
#else
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

// ---- registers ----
// A warpgroup hands back registers, so that each of its threads has kCount, or waits for so many. All its
// threads; multiples of 8, from the number that the kernel starts with. The emulator has nothing in their
// place.
template <int kCount>
__device__ __forceinline__ void release_registers() {
  static_assert(kCount % 8 == 0 && kCount >= 24);
#ifndef SWITCHYARD_SIMT
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}
template <int kCount>
__device__ __forceinline__ void claim_registers() {
  static_assert(kCount % 8 == 0 && kCount <= 256);
#ifndef SWITCHYARD_SIMT
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}

// ---- copies ----

// What this thread has written to shared memory is there for bulk copies and products that begin after it.
__device__ __forceinline__ void fence_proxy_async() {
#ifdef SWITCHYARD_SIMT
  simt::hopper().fence_proxy_async();
#else
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
// Brings a map nearer, before the first copy asks for it. One thread; the emulator has nothing in its place.
__device__ __forceinline__ void prefetch_map(const TensorMap& map) {
#ifdef SWITCHYARD_SIMT
  static_cast<void>(map);
#else
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
#endif
}
// Begins to copy the box at (matrix, row, column) to shared memory, to a multiple of 1024 bytes. One thread.
// `barrier` receives the bytes of the whole box, in the matrix or outside.
__device__ __forceinline__ void bulk_copy(void* to_shared, const TensorMap& map, Barrier& barrier, int matrix,
                                          int row, int column) {
#ifdef SWITCHYARD_SIMT
  simt::hopper().bulk_copy(to_shared, map, &barrier, {column, row, matrix, 0});
#else
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, "
      "%5}], [%2];" ::"r"(shared_address(to_shared)),
      "l"(&map), "r"(shared_address(&barrier)), "r"(column), "r"(row), "r"(matrix)
      : "memory");
#endif
}
// The same of the box at (matrix, row, head, column) of a map with heads.
__device__ __forceinline__ void bulk_copy(void* to_shared, const TensorMap& map, Barrier& barrier, int matrix,
                                          int row, int head, int column) {
#ifdef SWITCHYARD_SIMT
  simt::hopper().bulk_copy(to_shared, map, &barrier, {column, head, row, matrix});
#else
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, "
      "%5, %6}], [%2];" ::"r"(shared_address(to_shared)),
      "l"(&map), "r"(shared_address(&barrier)), "r"(column), "r"(head), "r"(row), "r"(matrix)
      : "memory");
#endif
}

// Bulk copies from shared memory, in groups of the thread that begins them. All before has been fenced.

// Begins to copy a box from shared memory, a multiple of 1024 bytes, to (matrix, row, column); to add it there,
// in float32 and rounded to nearest. Nothing outside the matrix is touched. Each addition is one of an element
// of its own: where an element is added to once a launch, its bits are those of a load, an addition and a
// store, but for subnormal numbers, which count as zeros of their sign, as terms and as a sum. The PTX ISA says
// that of the same instruction without a map ("cp.reduce.async.bulk": the current implementation of .add.f32);
// of this one it says nothing.
__device__ __forceinline__ void bulk_store(const TensorMap& map, int matrix, int row, int column,
                                           const void* from_shared) {
#ifdef SWITCHYARD_SIMT
  simt::hopper().bulk_store(map, {column, row, matrix}, from_shared, false);
#else
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
      "r"(shared_address(from_shared)), "r"(column), "r"(row), "r"(matrix)
      : "memory");
#endif
}
__device__ __forceinline__ void bulk_add(const TensorMap& map, int matrix, int row, int column,
                                         const void* from_shared) {
#ifdef SWITCHYARD_SIMT
  simt::hopper().bulk_store(map, {column, row, matrix}, from_shared, true);
#else
  asm volatile(
      "cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(
          &map),
      "r"(shared_address(from_shared)), "r"(column), "r"(row), "r"(matrix)
      : "memory");
#endif
}
__device__ __forceinline__ void bulk_commit() {
#ifdef SWITCHYARD_SIMT
  simt::hopper().bulk_commit();
#else
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}
// Until all but the last kGroupsLeft of the thread's groups have read shared memory; have written, too.
template <int kGroupsLeft>
__device__ __forceinline__ void bulk_wait_read() {
#ifdef SWITCHYARD_SIMT
  simt::hopper().bulk_wait(kGroupsLeft, true);
#else
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kGroupsLeft) : "memory");
#endif
}
template <int kGroupsLeft>
__device__ __forceinline__ void bulk_wait() {
#ifdef SWITCHYARD_SIMT
  simt::hopper().bulk_wait(kGroupsLeft, false);
#else
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
#endif
}

// ---- products ----

// Where a product finds an operand: 16 elements of K times 64 (a) or N (b) of the other dimension.
//   along K:  a line for each row, the 16 elements 32 bytes of it; eight lines, then the next eight
//             `stride_bytes` further
//   across:   a line of 64 rows for each k; eight lines, then the next eight `stride_bytes` further; the next
//             64 rows `leading_bytes` further
// All in bytes, multiples of 16. Without a use for leading_bytes: 16.
__device__ __forceinline__ std::uint64_t operand_at(const void* start, int leading_bytes, int stride_bytes) {
  const auto field = [](unsigned bytes) { return std::uint64_t{(bytes & 0x3ffff) >> 4}; };
  constexpr std::uint64_t kSwizzle128 = 1;
  return field(shared_address(start)) | field(static_cast<unsigned>(leading_bytes)) << 16 |
         field(static_cast<unsigned>(stride_bytes)) << 32 | kSwizzle128 << 62;
}
// The operand `bytes` further.
__device__ __forceinline__ std::uint64_t moved(std::uint64_t operand, int bytes) {
  return operand + (static_cast<unsigned>(bytes) >> 4);
}

// Before the first product, and before each whose registers were read or written since.
__device__ __forceinline__ void wgmma_fence() {
#ifdef SWITCHYARD_SIMT
  simt::hopper().wgmma_fence();
#else
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void wgmma_commit() {
#ifdef SWITCHYARD_SIMT
  simt::hopper().wgmma_commit();
#else
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Until all but the last kGroupsLeft groups are computed: then their operands may be overwritten, and their
// sums be read.
template <int kGroupsLeft>
__device__ __forceinline__ void wgmma_wait() {
#ifdef SWITCHYARD_SIMT
  simt::hopper().wgmma_wait(kGroupsLeft);
#else
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroupsLeft) : "memory");
#endif
}

// The registers of a thread's sums, as operands and as the instruction's text names them.
#define SY_SUMS_4(i) "+f"(sum[i]), "+f"(sum[i + 1]), "+f"(sum[i + 2]), "+f"(sum[i + 3])
#define SY_SUMS_16(i) SY_SUMS_4(i), SY_SUMS_4(i + 4), SY_SUMS_4(i + 8), SY_SUMS_4(i + 12)
#define SY_SUMS_32(i) SY_SUMS_16(i), SY_SUMS_16(i + 16)
#define SY_SUMS_64(i) SY_SUMS_32(i), SY_SUMS_32(i + 32)
#define SY_NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define SY_NAMES_32 \
  SY_NAMES_16       \
  ", "              \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SY_NAMES_64                                                                  \
  SY_NAMES_32                                                                        \
  ", "                                                                               \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SY_NAMES_96                                                                  \
  SY_NAMES_64                                                                        \
  ", "                                                                               \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define SY_NAMES_128                                                                             \
  SY_NAMES_96                                                                                    \
  ", "                                                                                           \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define SY_WGMMA(columns, names, operands, add) \
  "{\n.reg .pred p;\nsetp.ne.b32 p, " add       \
  ", 0;\n"                                      \
  "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32.bf16.bf16 {" names "}, " operands ";\n}\n"
// As many sums as there are widths in use for.
template <int kSums>
constexpr bool kIsSums = kSums == 16 || kSums == 32 || kSums == 64 || kSums == 96 || kSums == 128;

// Begins sum = a b, or += where `add`, for 64 x N sums of a warpgroup: four warps, the first a multiple of
// four. a lies along K or (kAAlongM) along M, b along K or (kBAlongN) along N. All threads name the same
// operands.
//   sum[i] of lane l of warp w: row 16 w + l / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (l % 4) + i % 2
template <bool kAAlongM, bool kBAlongN, int kSums>
__device__ __forceinline__ void wgmma(float (&sum)[kSums], std::uint64_t a, std::uint64_t b, bool add) {
  static_assert(kIsSums<kSums>);
#ifdef SWITCHYARD_SIMT
  simt::hopper().wgmma(sum, {2 * kSums, a, b, kAAlongM, kBAlongN, add, false}, nullptr);
#else
  if constexpr (kSums == 16) {
    asm volatile(SY_WGMMA("32", SY_NAMES_16, "%16, %17, p, 1, 1, %19, %20", "%18")
                 : SY_SUMS_16(0)
                 : "l"(a), "l"(b), "r"(int{add}), "n"(int{kAAlongM}), "n"(int{kBAlongN})
                 : "memory");
  } else if constexpr (kSums == 32) {
    asm volatile(SY_WGMMA("64", SY_NAMES_32, "%32, %33, p, 1, 1, %35, %36", "%34")
                 : SY_SUMS_32(0)
                 : "l"(a), "l"(b), "r"(int{add}), "n"(int{kAAlongM}), "n"(int{kBAlongN})
                 : "memory");
  } else if constexpr (kSums == 64) {
    asm volatile(SY_WGMMA("128", SY_NAMES_64, "%64, %65, p, 1, 1, %67, %68", "%66")
                 : SY_SUMS_64(0)
                 : "l"(a), "l"(b), "r"(int{add}), "n"(int{kAAlongM}), "n"(int{kBAlongN})
                 : "memory");
  } else if constexpr (kSums == 96) {
    asm volatile(SY_WGMMA("192", SY_NAMES_96, "%96, %97, p, 1, 1, %99, %100", "%98")
                 : SY_SUMS_64(0), SY_SUMS_32(64)
                 : "l"(a), "l"(b), "r"(int{add}), "n"(int{kAAlongM}), "n"(int{kBAlongN})
                 : "memory");
  } else {
    asm volatile(SY_WGMMA("256", SY_NAMES_128, "%128, %129, p, 1, 1, %131, %132", "%130")
                 : SY_SUMS_64(0), SY_SUMS_64(64)
                 : "l"(a), "l"(b), "r"(int{add}), "n"(int{kAAlongM}), "n"(int{kBAlongN})
                 : "memory");
  }
#endif
}

// The same with a in registers, which stay as they are until the product has been waited for: 64 x 16 of bf16,
// of which a thread has pairs of neighbours along K.
//   a[i] of lane l of warp w: row 16 w + l / 4 + 8 (i % 2), k = 2 (l % 4) + 8 (i / 2) and the next: those that
//   are sum[8 j + 2 i] and sum[8 j + 2 i + 1] of a product whose columns 16 j .. 16 j + 15 are this one's K.
template <bool kBAlongN, int kSums>
__device__ __forceinline__ void wgmma(float (&sum)[kSums], const unsigned (&a)[4], std::uint64_t b, bool add) {
  static_assert(kIsSums<kSums>);
#ifdef SWITCHYARD_SIMT
  simt::hopper().wgmma(sum, {2 * kSums, 0, b, false, kBAlongN, add, false}, a);
#else
  if constexpr (kSums == 16) {
    asm volatile(SY_WGMMA("32", SY_NAMES_16, "{%16, %17, %18, %19}, %20, p, 1, 1, %22", "%21")
                 : SY_SUMS_16(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{add}), "n"(int{kBAlongN})
                 : "memory");
  } else if constexpr (kSums == 32) {
    asm volatile(SY_WGMMA("64", SY_NAMES_32, "{%32, %33, %34, %35}, %36, p, 1, 1, %38", "%37")
                 : SY_SUMS_32(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{add}), "n"(int{kBAlongN})
                 : "memory");
  } else if constexpr (kSums == 64) {
    asm volatile(SY_WGMMA("128", SY_NAMES_64, "{%64, %65, %66, %67}, %68, p, 1, 1, %70", "%69")
                 : SY_SUMS_64(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{add}), "n"(int{kBAlongN})
                 : "memory");
  } else if constexpr (kSums == 96) {
    asm volatile(SY_WGMMA("192", SY_NAMES_96, "{%96, %97, %98, %99}, %100, p, 1, 1, %102", "%101")
                 : SY_SUMS_64(0), SY_SUMS_32(64)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{add}), "n"(int{kBAlongN})
                 : "memory");
  } else {
    asm volatile(SY_WGMMA("256", SY_NAMES_128, "{%128, %129, %130, %131}, %132, p, 1, 1, %134", "%133")
                 : SY_SUMS_64(0), SY_SUMS_64(64)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{add}), "n"(int{kBAlongN})
                 : "memory");
  }
#endif
}

// Two floats as E4M3 in the low and the high byte: to nearest, ties to even, beyond 448 to 448. NaN is NaN.
__device__ __forceinline__ std::uint16_t e4m3_pair(float low, float high) {
#ifdef SWITCHYARD_SIMT
  return simt::e4m3_pair(low, high);
#else
  std::uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
#endif
}

// The same of E4M3, 32 of K at once, 64 x 128 sums. Both operands lie along K, where these have the bytes that
// 16 bf16 have.
__device__ __forceinline__ void wgmma_e4m3(float (&sum)[64], std::uint64_t a, std::uint64_t b, bool add) {
#ifdef SWITCHYARD_SIMT
  simt::hopper().wgmma(sum, {128, a, b, false, false, add, true}, nullptr);
#else
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {" SY_NAMES_64 "}, %64, %65, p, 1, 1;\n}\n"
      : SY_SUMS_64(0)
      : "l"(a), "l"(b), "r"(int{add})
      : "memory");
#endif
}

#undef SY_WGMMA
#undef SY_NAMES_128
#undef SY_NAMES_96
#undef SY_NAMES_64
#undef SY_NAMES_32
#undef SY_NAMES_16
#undef SY_SUMS_64
#undef SY_SUMS_32
#undef SY_SUMS_16
#undef SY_SUMS_4

}  // namespace switchyard::ops::cuda
