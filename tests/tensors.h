// Tensors for tests: they own their memory, start as NaN, and can be column ranges of a wider matrix.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <string_view>
#include <utility>
#include <vector>

#include "core/rng.h"
#include "core/tensor.h"

namespace switchyard::test {

// What an integer tensor holds before anything is written to it: no valid token, expert or row.
constexpr std::int32_t kUnsetInt = 0x7fc00000;

// The address of element i of a tensor in row-major order, whatever its row stride.
inline std::byte* element(const Tensor& tensor, std::int64_t i) {
  const std::int64_t row = i / tensor.row_size(), column = i % tensor.row_size();
  return static_cast<std::byte*>(tensor.raw()) + (row * tensor.row_stride() + column) * size_of(tensor.dtype());
}

// The bits of the nearest bfloat16, ties to even; a NaN stays one.
inline std::uint16_t round_to_bf16(float value) {
  if (std::isnan(value)) return 0x7fff;
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

// Element i in row-major order as a double (an i32 as its value), and its assignment.
inline double get(const Tensor& tensor, std::int64_t i) {
  const auto load = [&]<class T>(T value) {
    std::memcpy(&value, element(tensor, i), sizeof value);
    return static_cast<double>(value);
  };
  const auto load_bits = [&] {
    std::uint16_t bits;
    std::memcpy(&bits, element(tensor, i), sizeof bits);
    return bits;
  };
  switch (tensor.dtype()) {
    case DType::f32:
      return load(float{});
    case DType::f64:
      return load(double{});
    case DType::i32:
      return load(std::int32_t{});
    case DType::bf16:
      return static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(load_bits()) << 16));
  }
  throw std::logic_error("not a dtype");
}
inline void set(const Tensor& tensor, std::int64_t i, double value) {
  const auto store = [&](auto converted) { std::memcpy(element(tensor, i), &converted, sizeof converted); };
  switch (tensor.dtype()) {
    case DType::f32:
      return store(static_cast<float>(value));
    case DType::f64:
      return store(value);
    case DType::i32:
      return store(static_cast<std::int32_t>(value));
    case DType::bf16:
      return store(round_to_bf16(static_cast<float>(value)));
  }
  throw std::logic_error("not a dtype");
}

// Every element becomes NaN (an i32: kUnsetInt), to prove that an output is set before it is read.
inline void poison(const Tensor& tensor) {
  const double value = tensor.dtype() == DType::i32 ? kUnsetInt : std::numeric_limits<double>::quiet_NaN();
  for (std::int64_t i = 0; i < tensor.numel(); ++i) set(tensor, i, value);
}

class OwnedTensor {
 public:
  // Contiguous, poisoned. The allocation ends where the tensor ends, so that the address sanitizer sees an
  // overrun.
  OwnedTensor(Shape shape, DType dtype)
      : memory_(::operator new(static_cast<std::size_t>(shape.numel() * size_of(dtype)), kAlign)),
        whole_(memory_.get(), shape, dtype),
        view_(whole_) {
    poison(whole_);
  }
  // A [rows, columns] matrix whose rows lie `margin` elements away from the edges of a wider, poisoned matrix.
  static OwnedTensor strided(std::int64_t rows, std::int64_t columns, DType dtype, std::int64_t margin = 5) {
    OwnedTensor tensor({rows, columns + 2 * margin}, dtype);
    tensor.view_ = tensor.whole_.columns(margin, columns);
    return tensor;
  }

  operator const Tensor&() const { return view_; }
  const Tensor& view() const { return view_; }
  std::int64_t numel() const { return view_.numel(); }
  double operator[](std::int64_t i) const { return get(view_, i); }
  // Of a strided tensor: whether all that lies outside its columns is still poisoned.
  bool margins_untouched() const {
    const std::int64_t first = (whole_.row_size() - view_.row_size()) / 2, last = first + view_.row_size();
    for (std::int64_t i = 0; i < whole_.numel(); ++i) {
      const std::int64_t column = i % whole_.row_size();
      const double value = get(whole_, i);
      if ((column < first || column >= last) && !std::isnan(value) && value != kUnsetInt) return false;
    }
    return true;
  }

 private:
  static constexpr std::align_val_t kAlign{64};
  struct Free {
    void operator()(void* p) const { ::operator delete(p, kAlign); }
  };
  std::unique_ptr<void, Free> memory_;
  Tensor whole_;
  Tensor view_;
};

inline void fill(const Tensor& tensor, const std::vector<double>& values) {
  ASSERT_EQ(tensor.numel(), static_cast<std::int64_t>(values.size()));
  for (std::int64_t i = 0; i < tensor.numel(); ++i) set(tensor, i, values[static_cast<std::size_t>(i)]);
}

// Normal values, a function of `name` and the element's index alone. An f32 tensor gets the f64 one's values,
// rounded.
inline void fill_normal(const Tensor& tensor, std::string_view name, double scale = 1.0, double mean = 0.0) {
  const Rng rng(20240601, RngPurpose::init, hash_name(name));
  for (std::int64_t i = 0; i < tensor.numel(); ++i) {
    set(tensor, i, mean + scale * rng.normal(static_cast<std::uint64_t>(i)));
  }
}

// Integers, uniform in [low, high).
inline void fill_int(const Tensor& tensor, std::string_view name, std::int64_t low, std::int64_t high) {
  const Rng rng(20240601, RngPurpose::init, hash_name(name));
  for (std::int64_t i = 0; i < tensor.numel(); ++i) {
    const double offset =
        std::floor(rng.uniform(static_cast<std::uint64_t>(i)) * static_cast<double>(high - low));
    set(tensor, i, static_cast<double>(low) + offset);
  }
}

inline OwnedTensor normal(Shape shape, DType dtype, std::string_view name, double scale = 1.0,
                          double mean = 0.0) {
  OwnedTensor tensor(shape, dtype);
  fill_normal(tensor, name, scale, mean);
  return tensor;
}
inline OwnedTensor normal_strided(std::int64_t rows, std::int64_t columns, DType dtype, std::string_view name,
                                  double scale = 1.0, std::int64_t margin = 5) {
  OwnedTensor tensor = OwnedTensor::strided(rows, columns, dtype, margin);
  fill_normal(tensor, name, scale);
  return tensor;
}
inline OwnedTensor ints(const std::vector<double>& values) {
  OwnedTensor tensor({static_cast<std::int64_t>(values.size())}, DType::i32);
  fill(tensor, values);
  return tensor;
}

inline OwnedTensor doubles(const std::vector<double>& values) {
  OwnedTensor tensor({static_cast<std::int64_t>(values.size())}, DType::f64);
  fill(tensor, values);
  return tensor;
}
// What `set` sets: it is given a number, f64 and poisoned.
template <class F>
double number_from(F&& set) {
  const OwnedTensor number_1({1}, DType::f64);
  set(number_1.view());
  return number_1[0];
}

// All elements in row-major order.
inline std::vector<double> values(const Tensor& tensor) {
  std::vector<double> all;
  all.reserve(static_cast<std::size_t>(tensor.numel()));
  for (std::int64_t i = 0; i < tensor.numel(); ++i) all.push_back(get(tensor, i));
  return all;
}

// after - before: what an operator that adds has added.
inline std::vector<double> difference(const std::vector<double>& after, const std::vector<double>& before) {
  std::vector<double> result(after);
  for (std::size_t i = 0; i < result.size(); ++i) result[i] -= before.at(i);
  return result;
}

// sum_i a_i b_i: the usual scalar loss of a gradient check, `a` being the gradient that flows back.
inline double dot(const Tensor& a, const Tensor& b) {
  double sum = 0;
  for (std::int64_t i = 0; i < a.numel(); ++i) sum += get(a, i) * get(b, i);
  return sum;
}

// Each element within absolute + relative * |expected|; reports the worst. NaN is near nothing.
inline ::testing::AssertionResult all_near(const std::vector<double>& actual,
                                           const std::vector<double>& expected, double relative,
                                           double absolute) {
  if (actual.size() != expected.size()) {
    return ::testing::AssertionFailure() << actual.size() << " elements, expected " << expected.size();
  }
  double worst_excess = 0;
  std::size_t worst = 0;
  bool failed = false;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double error = std::abs(actual[i] - expected[i]);
    const double excess = error / (absolute + relative * std::abs(expected[i]) + 1e-300);
    const bool within = error == 0 || excess <= 1;  // false for NaN
    if (within) continue;
    if (!failed || !(excess <= worst_excess)) worst_excess = excess, worst = i;
    failed = true;
  }
  if (!failed) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "element " << worst << " is " << actual[worst] << ", expected "
                                       << expected[worst] << ": " << worst_excess << " times the tolerance";
}

// Equal bit for bit, element by element.
inline ::testing::AssertionResult same_bits(const Tensor& a, const Tensor& b) {
  if (!(a.shape() == b.shape()) || a.dtype() != b.dtype())
    return ::testing::AssertionFailure() << "shapes differ";
  for (std::int64_t i = 0; i < a.numel(); ++i) {
    if (std::memcmp(element(a, i), element(b, i), static_cast<std::size_t>(size_of(a.dtype()))) != 0) {
      return ::testing::AssertionFailure() << "element " << i << ": " << get(a, i) << " and " << get(b, i);
    }
  }
  return ::testing::AssertionSuccess();
}

}  // namespace switchyard::test
