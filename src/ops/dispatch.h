// Checks of arguments one by one, and the way to the device. Only ops/*.cpp include this.
#pragma once

#include "ops/operator.h"

// Returns from an operator with what `call` gives where the run is on a CUDA device. Without the CUDA backend
// there is no such run, and nothing of it is named.
#define SY_ON_CUDA(ctx, call)                      \
  if constexpr (kHasCuda) {                        \
    if ((ctx).device == Device::cuda) return call; \
  }

namespace switchyard::ops {

inline void check_shape(const Tensor& tensor, const Shape& expected, const char* name) {
  SY_CHECK(tensor.shape() == expected, "{} is {}, expected {}", name, tensor.shape().to_string(),
           expected.to_string());
}

inline void check_dtype(const Tensor& tensor, DType expected, const char* name) {
  SY_CHECK(tensor.dtype() == expected, "{} is {}, expected {}", name, name_of(tensor.dtype()),
           name_of(expected));
}

// `tensor` holds sums or statistics of `other`, or a weight's gradient beside it.
inline void check_statistics_of(const Tensor& tensor, const Tensor& other, const char* name) {
  check_dtype(tensor, statistics_type(other.dtype()), name);
}

// The same shape and dtype.
inline void check_like(const Tensor& tensor, const Tensor& other, const char* name) {
  check_shape(tensor, other.shape(), name);
  check_dtype(tensor, other.dtype(), name);
}

// For operators that walk a tensor as one run of elements.
inline void check_contiguous(const Tensor& tensor, const char* name) {
  SY_CHECK(tensor.contiguous(), "{} {} has a row stride of {}", name, tensor.shape().to_string(),
           tensor.row_stride());
}

// Contiguous, of sums and statistics.
inline void check_f64(const Tensor& tensor, const Shape& shape, const char* name) {
  check_shape(tensor, shape, name);
  check_dtype(tensor, DType::f64, name);
  check_contiguous(tensor, name);
}

}  // namespace switchyard::ops
