// Operands of MatmulType::e4m3 (ops/linear.h) as the CPU multiplies them: the values that they are rounded to,
// scales included, as float or double.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cpu {

// E4M3: a sign, 4 bits of exponent with bias 7, 3 of mantissa; no infinities, one NaN of each sign.   OCP 8-bit
// Floating Point Specification, revision 1.0
constexpr float kLargestE4m3 = 448;
constexpr std::int64_t kE4m3Tile = 128;

// The nearest E4M3, ties to even, as a float; beyond the largest one that, of the same sign. NaN is NaN.
float rounded_to_e4m3(float x);

// What values are divided by whose absolute values are `largest` at most, and the factor that does it.
struct E4m3Scale {
  float scale = 1, inverse = 1;
  explicit E4m3Scale(float largest);
};

// Copies of matrices in scratch space, contiguous, f32 or f64 as they are: with a scale for each 128 values of
// a row,
template <class T>
Tensor e4m3_along_rows(const Tensor& x_RK, Context& ctx);
// for each 128 values of a column, from row offset_Ep[e] on for each e (undefined: from row 0); rows from
// offset_Ep[E] on are not written,
template <class T>
Tensor e4m3_along_columns(const Tensor& x_RK, const Tensor& offset_Ep, Context& ctx);
// or for each 128 x 128 of a matrix, of which there may be several: [E, N, K].
template <class T>
Tensor e4m3_blocks(const Tensor& weight, Context& ctx);

}  // namespace switchyard::ops::cpu
