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

std::unique_ptr<DeviceGroup> make_device_group(const std::string& id, int rank, int size, bool symmetric) {
  if constexpr (kHasCuda) return cuda::make_device_group(id, rank, size, symmetric);
  SY_CHECK(false, "a program without CUDA has no ranks on devices, of which {} is {} of {} (symmetric: {})",
           id.size(), rank, size, symmetric);
  return {};
}

std::string no_symmetric_memory_reason() {
  if constexpr (kHasCuda) return cuda::no_symmetric_memory_reason();
  return "this program was built without CUDA";
}

std::vector<std::int64_t> symmetric_memory() {
  if constexpr (kHasCuda) return cuda::symmetric_memory();
  return {};
}

double exchange_seconds(Device device) {
  if constexpr (kHasCuda) {
    if (device == Device::cuda) return cuda::exchange_seconds();
  }
  return 0;
}

}  // namespace switchyard::ops
