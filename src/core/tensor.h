// Tensor: a view of memory that an arena or a parameter store owns. It carries shape, dtype and device, so that
// operators compare shapes instead of trusting integers that travel beside a pointer.
//
// Memory is row-major. Only the first dimension may have a stride of its own (`row_stride`), which is what a
// column range of a matrix needs; all inner dimensions are contiguous.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/error.h"

namespace switchyard {

enum class DType : std::uint8_t { f32, f64, bf16, i32 };
enum class Device : std::uint8_t { cpu, cuda };

std::int64_t size_of(DType dtype);  // bytes of one element
// Of sums, statistics and gradients of weights beside tensors of that type: f32 for bf16, else the type itself.
DType accumulation_dtype(DType dtype);
const char* name_of(DType dtype);    // "f32", "f64", ...
const char* name_of(Device device);  // "cpu", "cuda"

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct DTypeOf<std::int32_t> {
  static constexpr DType value = DType::i32;
};

// Up to four dimensions, each zero or more.
class Shape {
 public:
  static constexpr int kMaxRank = 4;

  Shape() = default;
  Shape(std::initializer_list<std::int64_t> dims);

  int rank() const { return rank_; }
  std::int64_t operator[](int i) const { return dims_[static_cast<std::size_t>(i)]; }
  std::int64_t numel() const;
  Shape with_rows(std::int64_t rows) const;  // the same shape, its first dimension replaced
  bool operator==(const Shape& other) const { return rank_ == other.rank_ && dims_ == other.dims_; }
  std::string to_string() const;  // "[4, 256, 512]"

 private:
  std::array<std::int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

class Tensor {
 public:
  Tensor() = default;
  Tensor(void* data, Shape shape, DType dtype, Device device = Device::cpu);

  bool defined() const { return shape_.rank() > 0; }
  const Shape& shape() const { return shape_; }
  std::int64_t dim(int i) const { return shape_[i]; }
  std::int64_t rows() const { return shape_[0]; }
  std::int64_t row_size() const { return row_size_; }      // elements in one index of the first dimension
  std::int64_t row_stride() const { return row_stride_; }  // elements from one such index to the next
  std::int64_t numel() const { return shape_.numel(); }
  std::int64_t nbytes() const { return numel() * size_of(dtype_); }
  bool contiguous() const { return row_stride_ == row_size_ || shape_[0] <= 1; }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  void* raw() const { return data_; }

  // Typed access. Throws std::logic_error where the dtype is another.
  template <class T>
  T* as() const {
    SY_CHECK(dtype_ == DTypeOf<T>::value, "tensor {} is {}, asked for as {}", shape_.to_string(),
             name_of(dtype_), name_of(DTypeOf<T>::value));
    return static_cast<T*>(data_);
  }
  template <class T>
  T* row(std::int64_t i) const {
    return as<T>() + i * row_stride_;
  }

  Tensor slice(std::int64_t first, std::int64_t count) const;    // indices [first, first+count) of dimension 0
  Tensor columns(std::int64_t first, std::int64_t count) const;  // of a matrix; shares the row stride
  Tensor reshape(Shape shape) const;  // of a contiguous tensor, or with an equal first dimension

 private:
  void* data_ = nullptr;
  Shape shape_;
  std::int64_t row_size_ = 0;
  std::int64_t row_stride_ = 0;
  DType dtype_ = DType::f32;
  Device device_ = Device::cpu;
};

}  // namespace switchyard
