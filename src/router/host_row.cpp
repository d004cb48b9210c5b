#include "router/host_row.h"

#include "core/device_memory.h"

namespace switchyard::router {

namespace {
// Of a tensor on the host.
double element(const Tensor& tensor, std::size_t i) {
  return tensor.dtype() == DType::f64 ? tensor.as<double>()[i] : static_cast<double>(tensor.as<float>()[i]);
}
}  // namespace

double read_number(const Tensor& tensor) {
  SY_CHECK(tensor.numel() == 1, "{} is not one number", tensor.shape().to_string());
  return element(HostCopy(tensor).tensor(), 0);
}

std::vector<double> read_row(const Tensor& tensor) {
  SY_CHECK(tensor.contiguous(), "{} has a row stride", tensor.shape().to_string());
  std::vector<double> values(static_cast<std::size_t>(tensor.numel()));
  const HostCopy host(tensor);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = element(host.tensor(), i);
  return values;
}

void write_row(const Tensor& tensor, std::span<const double> values) {
  SY_CHECK(tensor.contiguous() && tensor.numel() == static_cast<std::int64_t>(values.size()),
           "{} values for {}", values.size(), tensor.shape().to_string());
  const HostCopy host(tensor);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (tensor.dtype() == DType::f64)
      host->as<double>()[i] = values[i];
    else
      host->as<float>()[i] = static_cast<float>(values[i]);
  }
  host.write_back();
}

}  // namespace switchyard::router
