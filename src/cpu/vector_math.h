// Elementary functions that loops can be vectorised over: no branches, no library calls, float32 to about 2 ulp.
// In double they are the library's.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace switchyard::cpu {

// exp(x). Cody-Waite reduction by ln 2 and a degree-6 polynomial; 0 below -87.3, saturating above 88.3; NaN stays NaN.
inline float exp_of(float x) {
  constexpr float kLog2e = 1.44269504088896341f, kLn2Hi = 0.693359375f, kLn2Lo = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float clamped = x > 88.3762626647949f ? 88.3762626647949f : (x < -87.3365447504f ? -87.3365447504f : x);
  const float n = (clamped * kLog2e + kRound) - kRound;
  const float r = (clamped - n * kLn2Hi) - n * kLn2Lo;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float e = p * r * r + r + 1.0f;
  const float scaled = e * std::bit_cast<float>((static_cast<std::int32_t>(n) + 127) << 23);
  return x < -87.3365447504f ? 0.0f : (x == x ? scaled : x);
}
inline double exp_of(double x) { return std::exp(x); }

template <class T>
inline T sigmoid_of(T x) {
  return T(1) / (T(1) + exp_of(-x));
}

}  // namespace switchyard::cpu
