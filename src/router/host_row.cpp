#include "router/host_row.h"

namespace switchyard::router {

namespace {
double element(const Tensor& tensor, std::size_t i) {
  return tensor.dtype() == DType::f64 ? tensor.as<double>()[i] : static_cast<double>(tensor.as<float>()[i]);
}
}  // namespace

double read_number(const Tensor& tensor) {
  SY_CHECK(tensor.numel() == 1, "{} is not one number", tensor.shape().to_string());
  return element(tensor, 0);
}

std::vector<double> read_row(const Tensor& tensor) {
  SY_CHECK(tensor.contiguous(), "{} has a row stride", tensor.shape().to_string());
  std::vector<double> values(static_cast<std::size_t>(tensor.numel()));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = element(tensor, i);
  return values;
}

void write_row(const Tensor& tensor, std::span<const double> values) {
  SY_CHECK(tensor.contiguous() && tensor.numel() == static_cast<std::int64_t>(values.size()),
           "{} values for {}", values.size(), tensor.shape().to_string());
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (tensor.dtype() == DType::f64)
      tensor.as<double>()[i] = values[i];
    else
      tensor.as<float>()[i] = static_cast<float>(values[i]);
  }
}

}  // namespace switchyard::router
