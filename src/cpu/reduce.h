// Loops over tensors: typed rows, sums whose order is fixed, and when threads are worth their start.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/tensor.h"

namespace switchyard::cpu {

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

// The sum in double of term(i), i < n. Term i goes to lane i mod 32, and the lanes are folded in ascending
// order: the compiler may vectorise that, and no thread count or alignment changes the result.
template <class F>
inline double sum_in_lanes(std::int64_t n, F&& term) {
  constexpr std::int64_t kLanes = 32;
  double lane[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
    for (std::int64_t l = 0; l < kLanes; ++l) lane[l] += static_cast<double>(term(i + l));
  }
  for (std::int64_t l = 0; i + l < n; ++l) lane[l] += static_cast<double>(term(i + l));
  for (std::int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (std::int64_t l = 0; l < width; ++l) lane[l] += lane[l + width];
  }
  return lane[0];
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

}  // namespace switchyard::cpu
