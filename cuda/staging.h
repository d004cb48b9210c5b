// Small arguments and results that live on the host: a table's frequencies, sums that all ranks add up. An
// operator that takes them from the device as well neither copies nor waits then.
#pragma once

#include "core/context.h"
#include "core/device_memory.h"

namespace switchyard::ops::cuda {

// Device memory for a result: its own where it is a device tensor, else scratch space. copy_back() copies from
// there to the result.
inline Tensor device_buffer_for(const Tensor& result, Context& ctx) {
  return result.device() == Device::cuda ? result : ctx.scratch.take(result.shape(), result.dtype());
}
inline void copy_back(const Tensor& result, const Tensor& buffer) {
  if (buffer.raw() != result.raw()) copy(result, buffer);
}

// The tensor itself where it lies on the device, else a copy in scratch space.
inline Tensor on_device(const Tensor& tensor, Context& ctx) {
  const Tensor buffer = device_buffer_for(tensor, ctx);
  copy_back(buffer, tensor);
  return buffer;
}

}  // namespace switchyard::ops::cuda
