// Tensors for tests: they own their memory, start as NaN, and can be column ranges of a wider matrix.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <new>
#include <string_view>
#include <vector>

#include "core/tensor.h"

namespace switchyard::test {

// What an integer tensor holds before anything is written to it: no valid token, expert or row.
constexpr std::int32_t kUnsetInt = 0x7fc00000;

// Element i in row-major order as a double (an i32 as its value), and its assignment (bf16: to the nearest,
// ties to even). For a whole tensor values() and fill() are faster.
double get(const Tensor& tensor, std::int64_t i);
void set(const Tensor& tensor, std::int64_t i, double value);

// Every element becomes NaN (an i32: kUnsetInt), to prove that an output is set before it is read.
void poison(const Tensor& tensor);
// Whether all that lies outside the `columns` columns in the middle of a matrix is still poisoned.
bool only_written_inside(const Tensor& whole, std::int64_t columns);

class OwnedTensor {
 public:
  // Contiguous, poisoned. The allocation ends where the tensor ends, so that the address sanitizer sees an
  // overrun.
  OwnedTensor(Shape shape, DType dtype);
  // A [rows, columns] matrix whose rows lie `margin` elements away from the edges of a wider, poisoned matrix.
  static OwnedTensor strided(std::int64_t rows, std::int64_t columns, DType dtype, std::int64_t margin = 5);

  operator const Tensor&() const { return view_; }
  const Tensor& view() const { return view_; }
  std::int64_t numel() const { return view_.numel(); }
  double operator[](std::int64_t i) const { return get(view_, i); }
  // Of a strided tensor: whether all that lies outside its columns is still poisoned.
  bool margins_untouched() const { return only_written_inside(whole_, view_.row_size()); }

 private:
  static constexpr std::align_val_t kAlign{64};
  struct Free {
    void operator()(void* p) const { ::operator delete(p, kAlign); }
  };
  std::unique_ptr<void, Free> memory_;
  Tensor whole_;
  Tensor view_;
};

void fill(const Tensor& tensor, const std::vector<double>& values);

// Normal values, a function of `name` and the element's index alone. An f32 tensor gets the f64 one's values,
// rounded.
void fill_normal(const Tensor& tensor, std::string_view name, double scale = 1.0, double mean = 0.0);

// Integers, uniform in [low, high).
void fill_int(const Tensor& tensor, std::string_view name, std::int64_t low, std::int64_t high);

OwnedTensor normal(Shape shape, DType dtype, std::string_view name, double scale = 1.0, double mean = 0.0);
OwnedTensor normal_strided(std::int64_t rows, std::int64_t columns, DType dtype, std::string_view name,
                           double scale = 1.0, std::int64_t margin = 5);
OwnedTensor ints(const std::vector<double>& values);
OwnedTensor doubles(const std::vector<double>& values);
OwnedTensor absolute(const Tensor& tensor);

// What `set` sets: it is given a number, f64 and poisoned.
template <class F>
double number_from(F&& set) {
  const OwnedTensor number_1({1}, DType::f64);
  set(number_1.view());
  return number_1[0];
}

// All elements in row-major order.
std::vector<double> values(const Tensor& tensor);

// after - before: what an operator that adds has added.
std::vector<double> difference(const std::vector<double>& after, const std::vector<double>& before);

// sum_i a_i b_i: the usual scalar loss of a gradient check, `a` being the gradient that flows back.
double dot(const Tensor& a, const Tensor& b);

// Each element within absolute + relative * |expected|; reports the worst. NaN is near nothing.
::testing::AssertionResult all_near(const std::vector<double>& actual, const std::vector<double>& expected,
                                    double relative, double absolute);

// Equal bit for bit, element by element.
::testing::AssertionResult same_bits(const Tensor& a, const Tensor& b);

}  // namespace switchyard::test
