#include "core/tensor.h"

#include <fmt/format.h>

#include <algorithm>

namespace switchyard {

std::int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return 4;
    case DType::f64:
      return 8;
    case DType::bf16:
      return 2;
    case DType::i32:
      return 4;
  }
  return 0;
}

DType accumulation_dtype(DType dtype) { return dtype == DType::bf16 ? DType::f32 : dtype; }

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "f32";
    case DType::f64:
      return "f64";
    case DType::bf16:
      return "bf16";
    case DType::i32:
      return "i32";
  }
  return "?";
}

const char* name_of(Device device) {
  switch (device) {
    case Device::cpu:
      return "cpu";
    case Device::cuda:
      return "cuda";
  }
  return "?";
}

Shape::Shape(std::initializer_list<std::int64_t> dims) : rank_(static_cast<int>(dims.size())) {
  SY_CHECK(rank_ <= kMaxRank, "a shape has at most {} dimensions", kMaxRank);
  std::copy(dims.begin(), dims.end(), dims_.begin());
  for (std::int64_t d : dims) SY_CHECK(d >= 0, "a dimension is negative in {}", to_string());
}

std::int64_t Shape::numel() const {
  if (rank_ == 0) return 0;
  std::int64_t n = 1;
  for (int i = 0; i < rank_; ++i) n *= (*this)[i];
  return n;
}

Shape Shape::with_rows(std::int64_t rows) const {
  Shape shape = *this;
  shape.dims_[0] = rows;
  return shape;
}

std::string Shape::to_string() const {
  return fmt::format("[{}]", fmt::join(dims_.begin(), dims_.begin() + rank_, ", "));
}

Tensor::Tensor(void* data, Shape shape, DType dtype, Device device)
    : data_(data), shape_(shape), dtype_(dtype), device_(device) {
  row_size_ = 1;
  for (int i = 1; i < shape_.rank(); ++i) row_size_ *= shape_[i];
  row_stride_ = row_size_;
}

Tensor Tensor::slice(std::int64_t first, std::int64_t count) const {
  SY_CHECK(first >= 0 && count >= 0 && first + count <= rows(), "rows [{}, {}) of {}", first, first + count,
           shape_.to_string());
  Tensor view = *this;
  view.shape_ = shape_.with_rows(count);
  if (data_) view.data_ = static_cast<char*>(data_) + first * row_stride_ * size_of(dtype_);
  return view;
}

Tensor Tensor::columns(std::int64_t first, std::int64_t count) const {
  SY_CHECK(shape_.rank() == 2 && first >= 0 && count >= 0 && first + count <= shape_[1],
           "columns [{}, {}) of {}", first, first + count, shape_.to_string());
  Tensor view = *this;
  view.shape_ = Shape{shape_[0], count};
  view.row_size_ = count;
  if (data_) view.data_ = static_cast<char*>(data_) + first * size_of(dtype_);
  return view;
}

Tensor Tensor::reshape(Shape shape) const {
  SY_CHECK(shape.numel() == numel(), "{} cannot be seen as {}", shape_.to_string(), shape.to_string());
  SY_CHECK(contiguous() || shape[0] == shape_[0], "a strided {} cannot be seen as {}", shape_.to_string(),
           shape.to_string());
  Tensor view(data_, shape, dtype_, device_);
  if (!contiguous()) view.row_stride_ = row_stride_;
  return view;
}

}  // namespace switchyard
