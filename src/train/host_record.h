// What a step writes on its device and the host reads when it is over.
#pragma once

#include <vector>

#include "core/device_memory.h"

namespace switchyard::train {

// Zeros at first, of the host, and where a device writes them.
template <class T>
struct HostRecord {
  HostRecord(Device device, Shape shape)
      : values(static_cast<std::size_t>(shape.numel())),
        device_copy(device, Tensor(values.data(), shape, DTypeOf<T>::value)) {}
  HostRecord(const HostRecord&) = delete;
  HostRecord& operator=(const HostRecord&) = delete;
  Tensor on_device() const { return device_copy.tensor(); }
  Tensor on_host() { return Tensor(values.data(), on_device().shape(), DTypeOf<T>::value); }
  void read_back() const { device_copy.write_back(); }  // waits

  std::vector<T> values;
  CopyOn device_copy;
};

}  // namespace switchyard::train
