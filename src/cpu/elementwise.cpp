#include "cpu/elementwise.h"

#include <algorithm>
#include <cstring>

#include "ops/cpu/reduce.h"

namespace switchyard::ops::cpu {

namespace {

constexpr std::int64_t kBlock = 1 << 13;  // elements of one piece of work

// Covers [rows, row_size] with pieces f(row, first, count) of at most kBlock elements of one row, in parallel.
// The pieces do not depend on the number of threads. `flat`: all tensors are contiguous, so all rows are one.
template <class F>
void for_each_piece(const Tensor& tensor, bool flat, F&& f) {
  if (tensor.numel() == 0) return;
  const std::int64_t rows = flat ? 1 : tensor.rows(), width = tensor.numel() / rows;
  const std::int64_t pieces = (width + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(static) if (tensor.numel() >= kParallelElements)
  for (std::int64_t i = 0; i < rows * pieces; ++i) {
    const std::int64_t first = i % pieces * kBlock;
    f(i / pieces, first, std::min(kBlock, width - first));
  }
}

// Rows of a tensor whose dtype does not matter: what moves is bytes.
class ByteRows {
 public:
  explicit ByteRows(const Tensor& tensor)
      : data_(static_cast<std::byte*>(tensor.raw())),
        size_(size_of(tensor.dtype())),
        stride_(tensor.row_stride()) {}
  std::byte* at(std::int64_t row, std::int64_t column) const {
    return data_ + (row * stride_ + column) * size_;
  }
  std::size_t bytes(std::int64_t count) const { return static_cast<std::size_t>(count * size_); }

 private:
  std::byte* data_;
  std::int64_t size_;
  std::int64_t stride_;
};

}  // namespace

void fill_zero(Tensor out) {
  const ByteRows rows(out);
  for_each_piece(out, out.contiguous(), [=](std::int64_t row, std::int64_t first, std::int64_t count) {
    std::memset(rows.at(row, first), 0, rows.bytes(count));
  });
}

void copy(Tensor out, Tensor in) {
  const ByteRows to(out), from(in);
  for_each_piece(out, out.contiguous() && in.contiguous(),
                 [=](std::int64_t row, std::int64_t first, std::int64_t count) {
                   std::memcpy(to.at(row, first), from.at(row, first), to.bytes(count));
                 });
}

template <class T>
void add(Tensor out, Tensor a, Tensor b) {
  const Rows<T> sum_rows(out), a_rows(a), b_rows(b);
  for_each_piece(out, out.contiguous() && a.contiguous() && b.contiguous(),
                 [=](std::int64_t row, std::int64_t first, std::int64_t count) {
                   T* sum = sum_rows[row] + first;
                   const T* x = a_rows[row] + first;
                   const T* y = b_rows[row] + first;
#pragma omp simd
                   for (std::int64_t i = 0; i < count; ++i) sum[i] = x[i] + y[i];
                 });
}

void accumulate(Tensor sum_N, Tensor value_N, double factor) {
  double* sum = sum_N.as<double>();
  const double* value = value_N.as<double>();
  for_each_piece(sum_N, true, [=](std::int64_t, std::int64_t first, std::int64_t count) {
#pragma omp simd
    for (std::int64_t i = first; i < first + count; ++i) sum[i] += factor * value[i];
  });
}

template <class T>
double sum_of_squares(Tensor in, Scratch& scratch) {
  ScratchScope scope(scratch);
  const std::int64_t blocks = (in.numel() + kBlock - 1) / kBlock;
  double* partial = scratch.take({blocks}, DType::f64).as<double>();
  const T* data = in.as<T>();
  for_each_piece(in, true, [=](std::int64_t, std::int64_t first, std::int64_t count) {
    const T* block = data + first;
    partial[first / kBlock] = sum_in_lanes(count, [block](std::int64_t i) {
      const auto x = static_cast<double>(block[i]);
      return x * x;
    });
  });
  double sum = 0;
  for (std::int64_t block = 0; block < blocks; ++block) sum += partial[block];
  return sum;
}

template void add<float>(Tensor, Tensor, Tensor);
template void add<double>(Tensor, Tensor, Tensor);
template double sum_of_squares<float>(Tensor, Scratch&);
template double sum_of_squares<double>(Tensor, Scratch&);

}  // namespace switchyard::ops::cpu
