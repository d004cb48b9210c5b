// Tensors on the device for tests of the CUDA kernels: copies of host tensors, and outputs that start as NaN,
// each a piece of memory of its own, so that the emulator sees a write beyond it.
#pragma once

#include <utility>
#include <vector>

#include "core/context.h"
#include "cuda/device.h"
#include "tensors.h"

namespace switchyard::test {

// A context of the device. Its scratch space holds NaN wherever an operator has not yet written.
struct DeviceContext : Context {
  DeviceContext() : Context((ops::cuda::use_device_memory(), Device::cuda)) { scratch.set_poison(true); }
};

class DeviceTensor {
 public:
  // Contiguous, poisoned.
  DeviceTensor(Shape shape, DType dtype, const DeviceContext&)
      : memory_(allocate_aligned(shape.numel() * size_of(dtype), "a test tensor", Device::cuda)),
        whole_(memory_.get(), shape, dtype, Device::cuda),
        view_(whole_) {
    copy(whole_, OwnedTensor(shape, dtype));
  }
  // A [rows, columns] matrix whose rows lie `margin` elements away from the edges of a wider, poisoned matrix.
  static DeviceTensor strided(std::int64_t rows, std::int64_t columns, DType dtype, const DeviceContext& ctx,
                              std::int64_t margin = 5) {
    DeviceTensor tensor({rows, columns + 2 * margin}, dtype, ctx);
    tensor.view_ = tensor.whole_.columns(margin, columns);
    return tensor;
  }
  // A copy of a host tensor, converted to dtype; with a margin (of a matrix) strided as above.
  static DeviceTensor of(const Tensor& host, DType dtype, const DeviceContext& ctx, std::int64_t margin = 0) {
    DeviceTensor tensor = margin > 0 ? strided(host.dim(0), host.dim(1), dtype, ctx, margin)
                                     : DeviceTensor(host.shape(), dtype, ctx);
    const OwnedTensor staged(tensor.whole_.shape(), dtype);  // poisoned
    const Tensor inner = margin > 0 ? staged.view().columns(margin, host.dim(1)) : staged.view();
    fill(inner, test::values(host));
    copy(tensor.whole_, staged);
    return tensor;
  }
  static DeviceTensor of(const Tensor& host, const DeviceContext& ctx) { return of(host, host.dtype(), ctx); }

  operator const Tensor&() const { return view_; }
  const Tensor& view() const { return view_; }
  // All elements in row-major order.
  std::vector<double> values() const {
    const OwnedTensor host = whole_on_host();
    return test::values(
        whole_.row_size() == view_.row_size() ? host.view() : host.view().columns(margin(), view_.row_size()));
  }
  // On the host, in double: of the elements as they were rounded for the device.
  OwnedTensor as_f64() const {
    OwnedTensor tensor(view_.shape(), DType::f64);
    fill(tensor, values());
    return tensor;
  }
  // Of a strided tensor: whether all that lies outside its columns is still poisoned.
  bool margins_untouched() const { return only_written_inside(whole_on_host(), view_.row_size()); }

 private:
  std::int64_t margin() const { return (whole_.row_size() - view_.row_size()) / 2; }
  OwnedTensor whole_on_host() const {
    OwnedTensor host(whole_.shape(), whole_.dtype());
    copy(host, whole_);
    return host;
  }

  AlignedBuffer memory_;
  Tensor whole_, view_;
};

}  // namespace switchyard::test
