// Elementary functions that loops can be vectorised over: no branches, no library calls, float32 to one unit in
// the last place. In double they are the library's.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace switchyard::ops::cpu {

// exp(x): Cody-Waite reduction by ln 2, then the degree-6 polynomial of Cephes' expf. 0 where the result would
// be subnormal (below -87.34), infinity above 88.72; NaN stays NaN.
inline float exp_of(float x) {
  constexpr float kLog2e = 1.44269504088896341f, kLn2Hi = 0.693359375f, kLn2Lo = -2.12194440e-4f;
  constexpr float kSmallest = -87.3365447504f, kLargest = 88.7228317f;
  constexpr float kRound =
      12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, and leaves it in the low bits
  const float rounded = x * kLog2e + kRound, n = rounded - kRound;
  const float r = (x - n * kLn2Hi) - n * kLn2Lo;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float e = p * r * r + r + 1.0f;
  // e 2^n by adding n to e's exponent. What this makes of an x outside the range is not used.
  const float scaled =
      std::bit_cast<float>(std::bit_cast<std::uint32_t>(e) + (std::bit_cast<std::uint32_t>(rounded) << 23));
  const float in_range = x <= kSmallest ? 0.0f : scaled;
  return x <= kLargest ? in_range : x + std::numeric_limits<float>::infinity();
}
inline double exp_of(double x) { return std::exp(x); }

// log(x) of a positive, normal number: x = m 2^n with m around 1, then the polynomial of Cephes' logf.
inline float log_of(float x) {
  constexpr float kLn2Hi = 0.693359375f, kLn2Lo = -2.12194440e-4f;
  constexpr std::int32_t kRootHalf = 0x3f3504f3;  // sqrt(1/2)
  const auto bits = std::bit_cast<std::int32_t>(x);
  const std::int32_t n = (bits - kRootHalf) >> 23;
  const float f = std::bit_cast<float>(bits - n * (1 << 23)) - 1.0f, e = static_cast<float>(n), z = f * f;
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const float tail = f * z * p + kLn2Lo * e - 0.5f * z;
  return f + tail + kLn2Hi * e;
}
inline double log_of(double x) { return std::log(x); }

// log(1 + x), x >= 0, to the precision of x: what 1 + x rounds away is put back to first order.
inline float log1p_of(float x) {
  const float one_more = 1.0f + x;
  return log_of(one_more) + (x - (one_more - 1.0f)) / one_more;
}
inline double log1p_of(double x) { return std::log1p(x); }

template <class T>
inline T sigmoid_of(T x) {
  return T(1) / (T(1) + exp_of(-x));
}

}  // namespace switchyard::ops::cpu
