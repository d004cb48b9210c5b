// Functions that loops can be vectorised over: no branches, no calls but of a root. The elementary ones are
// exact to one unit in the last place in float32; in double they are the library's.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>

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

// c0 + c1 x + c2 x^2 + ...
inline double polynomial(double, double c) { return c; }
template <class... Cs>
inline double polynomial(double x, double c, Cs... cs) {
  return polynomial(x, cs...) * x + c;
}

// The normal value that two uniform words make by Box and Muller: Rng::normal's but for rounding (core/rng.h),
// as exact as a double's rounding allows: sqrt(-2 log u) cos(2 pi v), u = (a + 1/2) / 2^32, v = (b + 1/2) /
// 2^32.
inline double normal_of(std::uint32_t a, std::uint32_t b) {
  // log u = n log 2 + 2 atanh(s), s = (m - 1) / (m + 1), where u = m 2^n and m is from sqrt(1/2) to sqrt(2). As
  // s^2 is at most 0.0295, eleven terms of the series leave less than a rounding.
  constexpr double kLn2Hi = 0x1.62e42fee00000p-1, kLn2Lo = 0x1.a39ef35793c76p-33;
  constexpr std::int32_t kRootHalf = 0x3fe6a09e;  // the upper half of sqrt(1/2)
  const auto bits = std::bit_cast<std::int64_t>((static_cast<double>(a) + 0.5) * 0x1.0p-32);
  const std::int32_t n = (static_cast<std::int32_t>(bits >> 32) - kRootHalf) >> 20;
  const double m = std::bit_cast<double>(bits - static_cast<std::int64_t>(n) * (std::int64_t{1} << 52));
  const double s = (m - 1) / (m + 1), z = s * s;
  const double tail = z * polynomial(z, 1.0 / 3, 1.0 / 5, 1.0 / 7, 1.0 / 9, 1.0 / 11, 1.0 / 13, 1.0 / 15,
                                     1.0 / 17, 1.0 / 19, 1.0 / 21);
  const double log_u = n * kLn2Hi + (2 * s + (2 * s * tail + n * kLn2Lo));

  // 2 pi v = quarter pi / 2 + angle, |angle| <= pi / 4; Taylor's series.
  const std::uint32_t quarter = (b + (1u << 29)) >> 30;  // modulo 4
  const double angle = (static_cast<double>(static_cast<std::int32_t>(b - (quarter << 30))) + 0.5) *
                       (2 * std::numbers::pi * 0x1.0p-32);
  const double y = angle * angle;
  constexpr double f3 = 6, f5 = f3 * 20, f7 = f5 * 42, f9 = f7 * 72, f11 = f9 * 110, f13 = f11 * 156,
                   f15 = f13 * 210;
  constexpr double f4 = 24, f6 = f4 * 30, f8 = f6 * 56, f10 = f8 * 90, f12 = f10 * 132, f14 = f12 * 182,
                   f16 = f14 * 240;
  const double sine = angle * polynomial(y, 1, -1 / f3, 1 / f5, -1 / f7, 1 / f9, -1 / f11, 1 / f13, -1 / f15);
  const double cosine = polynomial(y, 1, -0.5, 1 / f4, -1 / f6, 1 / f8, -1 / f10, 1 / f12, -1 / f14, 1 / f16);
  const double turned = (quarter & 1) != 0 ? sine : cosine;
  // The cosine is + cosine, - sine, - cosine, + sine of the angle.
  return std::sqrt(-2 * log_u) * (((quarter + 1) & 2) != 0 ? -turned : turned);
}

template <class T>
inline T sigmoid_of(T x) {
  return T(1) / (T(1) + exp_of(-x));
}

}  // namespace switchyard::ops::cpu
