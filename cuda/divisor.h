// Division by a number that is the same for a whole launch: a product and a shift in place of some twenty
// instructions.   Granlund and Montgomery, Division by Invariant Integers using Multiplication, PLDI 1994
#pragma once

#include <cuda_runtime.h>

#include "core/error.h"

namespace switchyard::ops::cuda {

// n / d and n % d for 0 <= n < 2^31. Made on the host, from d > 0; is d where a number is wanted.
class Divisor {
 public:
  Divisor(int d) : d_(d) {
    SY_CHECK(d > 0, "a division by {}", d);
    while (shift_ < 31 && (1u << shift_) < static_cast<unsigned>(d)) ++shift_;
    const std::uint64_t beyond = (std::uint64_t{1} << shift_) - static_cast<unsigned>(d);
    factor_ = static_cast<unsigned>((beyond << 32) / static_cast<unsigned>(d) + 1);
  }
  __host__ __device__ operator int() const { return d_; }

  friend __device__ __forceinline__ int operator/(int n, const Divisor& by) {
    const auto u = static_cast<unsigned>(n);
    return static_cast<int>((__umulhi(u, by.factor_) + u) >> by.shift_);
  }
  friend __device__ __forceinline__ int operator%(int n, const Divisor& by) { return n - n / by * by.d_; }

 private:
  int d_;
  unsigned factor_, shift_ = 0;
};

}  // namespace switchyard::ops::cuda
