#include "ops/cpu/e4m3.h"

#include <algorithm>
#include <cmath>

namespace switchyard::ops::cpu {

namespace {

// Rows x columns values, `from_row` and `to_row` elements from one row to the next, with one scale.
template <class T>
void round_tile(const T* from, std::int64_t from_row, T* to, std::int64_t to_row, std::int64_t rows,
                std::int64_t columns) {
  float largest = 0;
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < columns; ++c)
      largest = std::max(largest, std::abs(static_cast<float>(from[r * from_row + c])));  // NaN is passed over
  const E4m3Scale scale(largest);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < columns; ++c)
      to[r * to_row + c] =
          static_cast<T>(rounded_to_e4m3(static_cast<float>(from[r * from_row + c]) * scale.inverse)) *
          static_cast<T>(scale.scale);
}

}  // namespace

float rounded_to_e4m3(float x) {
  constexpr float kSmallestNormal = 0x1p-6f;
  constexpr int kMantissa = 3;
  if (std::isnan(x)) return x;
  const float size = std::min(std::abs(x), kLargestE4m3);
  // A step of the format, a power of two: what is left of a point is an integer then, and rounding to even is
  // that of integers.
  const float step = std::ldexp(1.0f, std::ilogb(std::max(size, kSmallestNormal)) - kMantissa);
  return std::copysign(std::nearbyint(size / step) * step, x);
}

E4m3Scale::E4m3Scale(float largest) {
  constexpr float kSmallestScaled = 0x1p-100f;  // its inverse is finite
  if (largest == 0) return;
  largest = std::max(largest, kSmallestScaled);
  scale = largest / kLargestE4m3;
  inverse = kLargestE4m3 / largest;
}

template <class T>
Tensor e4m3_along_rows(const Tensor& x_RK, Context& ctx) {
  const std::int64_t n_rows = x_RK.rows(), width = x_RK.dim(1);
  const Tensor rounded_RK = ctx.scratch.take(Shape{n_rows, width}, x_RK.dtype());
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < n_rows; ++r)
    for (std::int64_t k = 0; k < width; k += kE4m3Tile)
      round_tile(x_RK.row<T>(r) + k, 0, rounded_RK.row<T>(r) + k, 0, 1, std::min(kE4m3Tile, width - k));
  return rounded_RK;
}

template <class T>
Tensor e4m3_along_columns(const Tensor& x_RK, const Tensor& offset_Ep, Context& ctx) {
  const std::int64_t width = x_RK.dim(1), n_experts = offset_Ep.defined() ? offset_Ep.rows() - 1 : 1;
  const Tensor rounded_RK = ctx.scratch.take(Shape{x_RK.rows(), width}, x_RK.dtype());
  const std::int32_t* const offset = offset_Ep.defined() ? offset_Ep.as<std::int32_t>() : nullptr;
#pragma omp parallel for schedule(dynamic, 1)
  for (std::int64_t e = 0; e < n_experts; ++e) {
    const std::int64_t begin = offset ? offset[e] : 0, end = offset ? offset[e + 1] : x_RK.rows();
    for (std::int64_t r = begin; r < end; r += kE4m3Tile)
      for (std::int64_t k = 0; k < width; ++k)
        round_tile(x_RK.row<T>(r) + k, x_RK.row_stride(), rounded_RK.row<T>(r) + k, width,
                   std::min(kE4m3Tile, end - r), 1);
  }
  return rounded_RK;
}

template <class T>
Tensor e4m3_blocks(const Tensor& weight, Context& ctx) {
  const bool several = weight.shape().rank() == 3;
  const std::int64_t n_matrices = several ? weight.dim(0) : 1, rows = weight.dim(several ? 1 : 0),
                     columns = weight.dim(several ? 2 : 1);
  const std::int64_t stride = several ? columns : weight.row_stride();
  const Tensor rounded = ctx.scratch.take(weight.shape(), weight.dtype());
  const std::int64_t bands = (rows + kE4m3Tile - 1) / kE4m3Tile;
#pragma omp parallel for schedule(static)
  for (std::int64_t band = 0; band < n_matrices * bands; ++band) {
    const std::int64_t matrix = band / bands, first = band % bands * kE4m3Tile;
    const T* const from = weight.as<T>() + (matrix * rows + first) * stride;
    T* const to = rounded.as<T>() + (matrix * rows + first) * columns;
    for (std::int64_t k = 0; k < columns; k += kE4m3Tile)
      round_tile(from + k, stride, to + k, columns, std::min(kE4m3Tile, rows - first),
                 std::min(kE4m3Tile, columns - k));
  }
  return rounded;
}

template Tensor e4m3_along_rows<float>(const Tensor&, Context&);
template Tensor e4m3_along_rows<double>(const Tensor&, Context&);
template Tensor e4m3_along_columns<float>(const Tensor&, const Tensor&, Context&);
template Tensor e4m3_along_columns<double>(const Tensor&, const Tensor&, Context&);
template Tensor e4m3_blocks<float>(const Tensor&, Context&);
template Tensor e4m3_blocks<double>(const Tensor&, Context&);

}  // namespace switchyard::ops::cpu
