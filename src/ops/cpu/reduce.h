// Loops over tensors: typed rows, sums whose order is fixed, and when threads are worth their start.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/tensor.h"

namespace switchyard::ops::cpu {

// Work on fewer elements than this is done by the calling thread: starting a team costs some microseconds.
constexpr std::int64_t kParallelElements = 1 << 14;

// The rows of a tensor, their type checked once, outside the loops.
template <class T>
class Rows {
 public:
  explicit Rows(const Tensor& tensor) : data_(tensor.as<T>()), stride_(tensor.row_stride()) {}
  T* operator[](std::int64_t row) const { return data_ + row * stride_; }

 private:
  T* data_;
  std::int64_t stride_;
};

// The sum of term(i), i < n, in `Sum`. Term i goes to lane i mod 16, and the upper half of the lanes is added
// to the lower one until one is left: no processor, thread count or alignment changes the order. The lanes are
// vectors by type, which GCC keeps in registers; an array of them it folds by way of the stack.
template <class Sum = double, class F>
[[gnu::always_inline]] inline Sum sum_in_lanes(std::int64_t n, F&& term) {
  constexpr std::int64_t kLanes = 16, kHalf = kLanes / 2;
  using Vector [[gnu::vector_size(64)]] = Sum;
  using Half [[gnu::vector_size(kHalf * sizeof(Sum))]] = Sum;
  constexpr std::size_t kVectors = kLanes * sizeof(Sum) / sizeof(Vector);
  Vector sum[kVectors] = {};
  const auto add = [&](const Sum(&lane)[kLanes]) {
    Vector more[kVectors];
    std::memcpy(&more, lane, sizeof more);
    for (std::size_t v = 0; v < kVectors; ++v) sum[v] += more[v];
  };
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Sum lane[kLanes];
#pragma omp simd
    for (std::int64_t l = 0; l < kLanes; ++l) lane[l] = static_cast<Sum>(term(i + l));
    add(lane);
  }
  if (i < n) {
    Sum lane[kLanes] = {};
    for (std::int64_t l = 0; i + l < n; ++l) lane[l] = static_cast<Sum>(term(i + l));
    add(lane);
  }
  Half half[2];
  std::memcpy(&half, &sum, sizeof half);
  Half low = half[0] + half[1];
  low += __builtin_shufflevector(low, low, 4, 5, 6, 7, 0, 1, 2, 3);
  low += __builtin_shufflevector(low, low, 2, 3, 0, 1, 2, 3, 0, 1);
  return low[0] + low[1];
}

// How a sum over rows is cut so that its order is fixed: blocks of `rows` rows, a function of the row count
// alone. Each block has a partial sum of its own; these are added in ascending order.
struct RowBlocks {
  std::int64_t rows;   // in each block but the last
  std::int64_t count;  // of blocks

  explicit RowBlocks(std::int64_t total_rows)
      : rows(std::max(kSmallest, (total_rows + kMost - 1) / kMost)), count((total_rows + rows - 1) / rows) {}

 private:
  static constexpr std::int64_t kSmallest = 32, kMost = 256;
};

// out[i] += the sum in double of column first + i of the blocks' partial sums, i < n, in ascending order.
template <class T>
void add_block_sums(T* out, const Rows<T>& partial_rows, const RowBlocks& blocks, std::int64_t first,
                    std::int64_t n, bool parallel) {
#pragma omp parallel for schedule(static) if (parallel)
  for (std::int64_t i = 0; i < n; ++i) {
    double sum = 0;
    for (std::int64_t block = 0; block < blocks.count; ++block)
      sum += static_cast<double>(partial_rows[block][first + i]);
    out[i] += static_cast<T>(sum);
  }
}

// 1 / sqrt(mean of in^2 + eps), made in double.
template <class T>
T reciprocal_rms(const T* in, std::int64_t width, double eps) {
  const double squares = sum_in_lanes(width, [in](std::int64_t n) {
    const auto x = static_cast<double>(in[n]);
    return x * x;
  });
  return static_cast<T>(1 / std::sqrt(squares / static_cast<double>(width) + eps));
}

}  // namespace switchyard::ops::cpu
