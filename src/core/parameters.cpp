#include "core/parameters.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string_view>
#include <utility>

#include "core/rng.h"

namespace switchyard {

namespace {

// Elements in a cache line of float32. In float64 the same offsets are a multiple of one.
constexpr std::int64_t kLine = kAlignment / 4;

std::int64_t round_up(std::int64_t n) { return (n + kLine - 1) / kLine * kLine; }

void zero(std::byte* data, std::int64_t bytes, Device device) {
  if (device != Device::cpu) return fill_bytes(data, 0, bytes, device);
  constexpr std::int64_t kPiece = 1 << 20;
  const std::int64_t pieces = (bytes + kPiece - 1) / kPiece;
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < pieces; ++i)
    std::memset(data + i * kPiece, 0, static_cast<std::size_t>(std::min(kPiece, bytes - i * kPiece)));
}

template <class T>
void fill(Tensor out, T value) {
  T* const data = out.as<T>();
  const std::int64_t n = out.numel();
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < n; ++i) data[i] = value;
}

template <class T>
void fill_normal(Tensor out, const Rng& rng, double standard_deviation) {
  T* const data = out.as<T>();
  const std::int64_t n = out.numel();
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < n; ++i)
    data[i] = static_cast<T>(standard_deviation * rng.normal(static_cast<std::uint64_t>(i)));
}

template <class T>
void scale_to_unit(Tensor out) {
  for (std::int64_t r = 0; r < out.rows(); ++r) {
    T* row = out.row<T>(r);
    double squares = 0;
    for (std::int64_t i = 0; i < out.row_size(); ++i)
      squares += static_cast<double>(row[i]) * static_cast<double>(row[i]);
    for (std::int64_t i = 0; i < out.row_size(); ++i)
      row[i] = static_cast<T>(static_cast<double>(row[i]) / std::sqrt(squares));
  }
}

template <class T>
void initialise_row(const Parameter& row, Tensor out, std::uint64_t seed) {
  switch (row.init) {
    case Init::zeros:
      return fill<T>(out, T{0});
    case Init::ones:
      return fill<T>(out, T{1});
    case Init::normal:
      return fill_normal<T>(out, Rng(seed, RngPurpose::init, hash_name(row.name)), row.init_std);
    case Init::unit_rows:
      fill_normal<T>(out, Rng(seed, RngPurpose::init, hash_name(row.name)), 1.0);
      return scale_to_unit<T>(out);
  }
}

}  // namespace

void ParameterStore::begin_group() { group_pending_ = true; }

std::size_t ParameterStore::add(Parameter parameter) {
  SY_CHECK(!memory_, "parameter {} comes after allocate()", parameter.name);
  SY_CHECK(parameter.shape.numel() > 0, "parameter {} of shape {}", parameter.name,
           parameter.shape.to_string());
  if (group_pending_) size_ = round_up(size_);
  parameter.offset = size_;
  size_ += parameter.shape.numel();
  rows_.push_back(std::move(parameter));
  starts_group_.push_back(std::exchange(group_pending_, false));
  return rows_.size() - 1;
}

void ParameterStore::allocate(DType dtype, DType compute, bool training, Device device) {
  SY_CHECK(!memory_, "parameters are allocated once");
  SY_CHECK(dtype == DType::f32 || dtype == DType::f64, "parameters are f32 or f64, not {}", name_of(dtype));
  SY_CHECK(accumulation_dtype(compute) == dtype, "parameters of {} do not serve a run in {}", name_of(dtype),
           name_of(compute));
  std::vector<std::string_view> names;
  names.reserve(rows_.size());
  for (const Parameter& row : rows_) names.push_back(row.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  SY_CHECK(twice == names.end(), "two parameters are named {}", *twice);

  training_ = training;
  size_ = flat_size();
  const std::int64_t array_bytes = size_ * size_of(dtype);
  const std::int64_t weight_bytes = compute == dtype ? 0 : size_ * size_of(compute);
  const std::int64_t bytes = array_bytes * (training ? 4 : 1) + weight_bytes;
  memory_ = allocate_aligned(bytes, training ? "parameters, gradients and moments" : "parameters", device);
  zero(memory_.get(), bytes, device);
  const auto flat = [&](std::int64_t i) {
    return Tensor(memory_.get() + i * array_bytes, Shape{size_}, dtype, device);
  };
  value_P_ = flat(0);
  weight_P_ = weight_bytes == 0 ? value_P_
                                : Tensor(memory_.get() + bytes - weight_bytes, Shape{size_}, compute, device);
  if (!training) return;
  grad_P_ = flat(1);
  moment1_P_ = flat(2);
  moment2_P_ = flat(3);
}

void ParameterStore::initialise(std::uint64_t seed) {
  SY_CHECK(memory_ != nullptr, "initialise() comes before allocate()");
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    const HostCopy host(value(i));
    if (value_P_.dtype() == DType::f64) {
      initialise_row<double>(rows_[i], host.tensor(), seed);
    } else {
      initialise_row<float>(rows_[i], host.tensor(), seed);
    }
    host.write_back();
  }
}

std::int64_t ParameterStore::flat_size() const { return round_up(size_); }

std::int64_t ParameterStore::count() const {
  std::int64_t n = 0;
  for (const Parameter& row : rows_) n += row.shape.numel();
  return n;
}

Tensor ParameterStore::view(const Tensor& flat_P, std::size_t row) const {
  SY_CHECK(row < rows_.size(), "parameter {} of {}", row, rows_.size());
  SY_CHECK(flat_P.defined(), "{}: this array was not allocated", rows_[row].name);
  return flat_P.slice(rows_[row].offset, rows_[row].shape.numel()).reshape(rows_[row].shape);
}

Tensor ParameterStore::block(const Tensor& flat_P, std::size_t first, Shape shape) const {
  SY_CHECK(first < rows_.size(), "parameter {} of {}", first, rows_.size());
  SY_CHECK(flat_P.defined(), "{}: this array was not allocated", rows_[first].name);
  std::int64_t covered = 0;
  for (std::size_t i = first; covered < shape.numel(); ++i) {
    SY_CHECK(i < rows_.size() && (i == first || !starts_group_[i]), "block {} from {} leaves its group",
             shape.to_string(), rows_[first].name);
    covered += rows_[i].shape.numel();
  }
  SY_CHECK(covered == shape.numel() && covered > 0, "block {} from {} ends inside a parameter",
           shape.to_string(), rows_[first].name);
  return flat_P.slice(rows_[first].offset, covered).reshape(shape);
}

}  // namespace switchyard
