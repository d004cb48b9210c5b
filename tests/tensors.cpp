#include "tensors.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "core/rng.h"

namespace switchyard::test {

namespace {

constexpr double kUnset = std::numeric_limits<double>::quiet_NaN();

// The address of element i of a tensor in row-major order, whatever its row stride.
std::byte* element(const Tensor& tensor, std::int64_t i) {
  const std::int64_t row = i / tensor.row_size(), column = i % tensor.row_size();
  return static_cast<std::byte*>(tensor.raw()) + (row * tensor.row_stride() + column) * size_of(tensor.dtype());
}

// The bits of the nearest bfloat16, ties to even; a NaN stays one.
std::uint16_t round_to_bf16(float value) {
  if (std::isnan(value)) return 0x7fff;
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

// The bits of a bfloat16 as an element type, which converts as float and double do.
struct Bf16 {
  std::uint16_t bits;
  explicit Bf16(double value) : bits(round_to_bf16(static_cast<float>(value))) {}
  explicit operator double() const {
    return static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16));
  }
};

// Calls f(T*) with a null pointer to the element type.
template <class F>
auto with_element(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(static_cast<float*>(nullptr));
    case DType::f64:
      return f(static_cast<double*>(nullptr));
    case DType::i32:
      return f(static_cast<std::int32_t*>(nullptr));
    case DType::bf16:
      return f(static_cast<Bf16*>(nullptr));
  }
  throw std::logic_error("not a dtype");
}

// Calls f.operator()<T>(i, address of element i) for each element in row-major order: the loop that every
// function here is, with the type chosen once and the division of element() spared.
template <class F>
void for_each_element(const Tensor& tensor, F&& f) {
  if (tensor.numel() == 0) return;
  with_element(tensor.dtype(), [&]<class T>(T*) {
    const std::int64_t n_rows = tensor.numel() / tensor.row_size(), row_size = tensor.row_size();
    auto* row = static_cast<std::byte*>(tensor.raw());
    for (std::int64_t r = 0, i = 0; r < n_rows; ++r, row += tensor.row_stride() * size_of(tensor.dtype()))
      for (std::byte* at = row; i < (r + 1) * row_size; ++i, at += sizeof(T)) f.template operator()<T>(i, at);
  });
}

template <class T>
double load(const std::byte* from) {
  std::byte bytes[sizeof(T)];
  std::memcpy(bytes, from, sizeof bytes);
  return static_cast<double>(std::bit_cast<T>(bytes));
}
template <class T>
void store(std::byte* to, double value) {
  const T converted = static_cast<T>(value);
  std::memcpy(to, &converted, sizeof converted);
}

// Sets element i to value(i), and calls use(i, element i).
template <class F>
void set_each(const Tensor& tensor, F&& value) {
  for_each_element(tensor, [&]<class T>(std::int64_t i, std::byte* at) { store<T>(at, value(i)); });
}
template <class F>
void read_each(const Tensor& tensor, F&& use) {
  for_each_element(tensor, [&]<class T>(std::int64_t i, const std::byte* at) { use(i, load<T>(at)); });
}

// The first `count` values of the stream of a name. They are a function of the name alone and tests ask for the
// same ones again and again, so they are kept.
class Normals {
 public:
  Normals(std::string_view name, std::int64_t count) : rng_(20240601, RngPurpose::init, hash_name(name)) {
    static std::mutex mutex;
    static std::map<std::string, std::vector<double>, std::less<>> kept;
    constexpr std::int64_t kMost = 1 << 18;
    const std::lock_guard lock(mutex);
    std::vector<double>& values = kept[std::string(name)];
    for (auto i = static_cast<std::int64_t>(values.size()); i < std::min(count, kMost); ++i)
      values.push_back(rng_.normal(static_cast<std::uint64_t>(i)));
    first_.assign(values.begin(), values.begin() + std::min(count, kMost));
  }
  double operator[](std::int64_t i) const {
    const auto index = static_cast<std::size_t>(i);
    return index < first_.size() ? first_[index] : rng_.normal(index);
  }

 private:
  Rng rng_;
  std::vector<double> first_;
};

}  // namespace

double get(const Tensor& tensor, std::int64_t i) {
  return with_element(tensor.dtype(), [&]<class T>(T*) { return load<T>(element(tensor, i)); });
}

void set(const Tensor& tensor, std::int64_t i, double value) {
  with_element(tensor.dtype(), [&]<class T>(T*) { store<T>(element(tensor, i), value); });
}

void poison(const Tensor& tensor) {
  const double value = tensor.dtype() == DType::i32 ? kUnsetInt : kUnset;
  set_each(tensor, [&](std::int64_t) { return value; });
}

OwnedTensor::OwnedTensor(Shape shape, DType dtype)
    : memory_(::operator new(static_cast<std::size_t>(shape.numel() * size_of(dtype)), kAlign)),
      whole_(memory_.get(), shape, dtype),
      view_(whole_) {
  poison(whole_);
}

OwnedTensor OwnedTensor::strided(std::int64_t rows, std::int64_t columns, DType dtype, std::int64_t margin) {
  OwnedTensor tensor({rows, columns + 2 * margin}, dtype);
  tensor.view_ = tensor.whole_.columns(margin, columns);
  return tensor;
}

bool only_written_inside(const Tensor& whole, std::int64_t columns) {
  const std::int64_t first = (whole.row_size() - columns) / 2, last = first + columns;
  bool untouched = true;
  read_each(whole, [&](std::int64_t i, double value) {
    const std::int64_t column = i % whole.row_size();
    if ((column < first || column >= last) && !std::isnan(value) && value != kUnsetInt) untouched = false;
  });
  return untouched;
}

void fill(const Tensor& tensor, const std::vector<double>& values) {
  ASSERT_EQ(tensor.numel(), static_cast<std::int64_t>(values.size()));
  set_each(tensor, [&](std::int64_t i) { return values[static_cast<std::size_t>(i)]; });
}

void fill_normal(const Tensor& tensor, std::string_view name, double scale, double mean) {
  const Normals normals(name, tensor.numel());
  set_each(tensor, [&](std::int64_t i) { return mean + scale * normals[i]; });
}

void fill_int(const Tensor& tensor, std::string_view name, std::int64_t low, std::int64_t high) {
  const Rng rng(20240601, RngPurpose::init, hash_name(name));
  set_each(tensor, [&](std::int64_t i) {
    const double offset =
        std::floor(rng.uniform(static_cast<std::uint64_t>(i)) * static_cast<double>(high - low));
    return static_cast<double>(low) + offset;
  });
}

OwnedTensor normal(Shape shape, DType dtype, std::string_view name, double scale, double mean) {
  OwnedTensor tensor(shape, dtype);
  fill_normal(tensor, name, scale, mean);
  return tensor;
}

OwnedTensor normal_strided(std::int64_t rows, std::int64_t columns, DType dtype, std::string_view name,
                           double scale, std::int64_t margin) {
  OwnedTensor tensor = OwnedTensor::strided(rows, columns, dtype, margin);
  fill_normal(tensor, name, scale);
  return tensor;
}

OwnedTensor ints(const std::vector<double>& values) {
  OwnedTensor tensor({static_cast<std::int64_t>(values.size())}, DType::i32);
  fill(tensor, values);
  return tensor;
}

OwnedTensor doubles(const std::vector<double>& values) {
  OwnedTensor tensor({static_cast<std::int64_t>(values.size())}, DType::f64);
  fill(tensor, values);
  return tensor;
}

OwnedTensor absolute(const Tensor& tensor) {
  OwnedTensor result(tensor.shape(), tensor.dtype());
  std::vector<double> all = values(tensor);
  for (double& value : all) value = std::abs(value);
  fill(result, all);
  return result;
}

std::vector<double> values(const Tensor& tensor) {
  std::vector<double> all(static_cast<std::size_t>(tensor.numel()));
  read_each(tensor, [&](std::int64_t i, double value) { all[static_cast<std::size_t>(i)] = value; });
  return all;
}

std::vector<double> difference(const std::vector<double>& after, const std::vector<double>& before) {
  std::vector<double> result(after);
  for (std::size_t i = 0; i < result.size(); ++i) result[i] -= before.at(i);
  return result;
}

double dot(const Tensor& a, const Tensor& b) {
  const std::vector<double> x = values(a), y = values(b);
  double sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) sum += x[i] * y.at(i);
  return sum;
}

::testing::AssertionResult all_near(const std::vector<double>& actual, const std::vector<double>& expected,
                                    double relative, double absolute) {
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

::testing::AssertionResult same_bits(const Tensor& a, const Tensor& b) {
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
