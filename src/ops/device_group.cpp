#include "ops/device_group.h"

namespace switchyard::ops {

int device_group_version() {
  if constexpr (kHasCuda) return cuda::device_group_version();
  return 0;
}

std::string make_device_group_id() {
  if constexpr (kHasCuda) return cuda::make_device_group_id();
  SY_CHECK(false, "a program without CUDA has no ranks on devices");
  return {};
}

std::unique_ptr<DeviceGroup> make_device_group(const std::string& id, int rank, int size) {
  if constexpr (kHasCuda) return cuda::make_device_group(id, rank, size);
  SY_CHECK(false, "a program without CUDA has no ranks on devices, of which {} is {} of {}", id.size(), rank,
           size);
  return {};
}

double exchange_seconds(Device device) {
  if constexpr (kHasCuda) {
    if (device == Device::cuda) return cuda::exchange_seconds();
  }
  return 0;
}

}  // namespace switchyard::ops
