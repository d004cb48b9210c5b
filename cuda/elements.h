// Element types of the kernels: float and bf16 in memory, float in registers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "core/tensor.h"

// Before a loop: all its turns, or n at a time, are written out. Arrays indexed by them stay in registers.
#ifdef SWITCHYARD_SIMT
#define SY_UNROLL
#define SY_UNROLL_BY(n)
#else
#define SY_PRAGMA(text) _Pragma(#text)
#define SY_UNROLL SY_PRAGMA(unroll)
#define SY_UNROLL_BY(n) SY_PRAGMA(unroll n)
#endif

namespace switchyard {

template <>
struct DTypeOf<__nv_bfloat16> {
  static constexpr DType value = DType::bf16;
};

namespace ops::cuda {

using bf16 = __nv_bfloat16;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
template <class T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return x;
  } else {
    return __float2bfloat16_rn(x);
  }
}

// What a thread loads and stores at once: kSize elements, at an address that is a multiple of their size
// together.
template <class T, int kSize>
struct alignas(sizeof(T) * kSize) Elements {
  T element[kSize];
};
template <class T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));  // elements of 16 bytes, the most that one access moves
template <int kSize, class T>
__device__ __forceinline__ Elements<T, kSize> load(const T* p) {
  return *reinterpret_cast<const Elements<T, kSize>*>(p);
}
template <int kSize, class T>
__device__ __forceinline__ void store(T* p, const Elements<T, kSize>& elements) {
  *reinterpret_cast<Elements<T, kSize>*>(p) = elements;
}

// Elements that stay what they were in memory and are converted anew for each use: the compiler else gives each
// bf16 a register of its own, and often one for its float32 beside it.
template <class T, int kSize = kPack<T>>
struct Packed {
  using Pack = Elements<T, kSize>;
#ifdef SWITCHYARD_SIMT
  static constexpr bool kWhole = false;
#else
  static constexpr bool kWhole = sizeof(Pack) == sizeof(uint4);
#endif
  std::conditional_t<kWhole, uint4, Pack> words;

  // Zeros where there is nothing to load.
  static __device__ __forceinline__ Packed of(const T* p, bool has) {
    Packed packed{};
    if (has) packed.words = *reinterpret_cast<const decltype(words)*>(p);
    return packed;
  }
  __device__ __forceinline__ Pack elements() const {
    auto own = words;
#ifndef SWITCHYARD_SIMT
    if constexpr (kWhole)  // nothing is known of it from earlier
      asm volatile("" : "+r"(own.x), "+r"(own.y), "+r"(own.z), "+r"(own.w));
#endif
    return reinterpret_cast<const Pack&>(own);
  }
};

// A matrix as a kernel sees it: rows of elements, each row a stride after the one before.
template <class T>
struct Rows {
  T* data;
  std::int64_t stride;
  __device__ __forceinline__ T* operator[](std::int64_t row) const { return data + row * stride; }
};
// Throws std::logic_error where the tensor is of another type.
template <class T>
Rows<T> rows_of(const Tensor& tensor) {
  return {tensor.as<std::remove_const_t<T>>(), tensor.row_stride()};
}
// True where every row starts at a multiple of kSize elements' size and holds a whole number of times that
// many. A vector is one row.
template <class T, int kSize = kPack<T>>
bool rows_are_packs(const Tensor& tensor) {
  if (tensor.shape().rank() == 1)
    return tensor.contiguous() && rows_are_packs<T, kSize>(tensor.reshape({1, tensor.dim(0)}));
  return reinterpret_cast<std::uintptr_t>(tensor.raw()) % alignof(Elements<T, kSize>) == 0 &&
         tensor.row_size() % kSize == 0 && (tensor.rows() <= 1 || tensor.row_stride() % kSize == 0);
}
// Calls f.operator()<elements at once>(): a pack or one.
template <class T, class F>
void with_pack(bool packs, F&& f) {
  if (packs) return f.template operator()<kPack<T>>();
  return f.template operator()<1>();
}

// Calls f.operator()<float>() or <bf16>(), as the dtype says.
template <class F>
void with_element(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f.template operator()<float>();
    case DType::bf16:
      return f.template operator()<bf16>();
    case DType::f64:
    case DType::i32:
      break;
  }
  SY_CHECK(false, "kernels compute in f32 or bf16, not in {}", name_of(dtype));
}

}  // namespace ops::cuda
}  // namespace switchyard
