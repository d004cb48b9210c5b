#include "ops/device.h"

#include "cuda/device.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

Device choose_device(const std::string& wish) {
  SY_CHECK(wish == "auto" || wish == "cpu" || wish == "cuda", "device \"{}\"", wish);
  if (wish == "cpu") return Device::cpu;
  std::string obstacle = "this program was built without the CUDA backend; build it with the preset 'cuda'";
  if constexpr (kHasCuda) obstacle = cuda::obstacle();
  if (!obstacle.empty()) {
    if (wish == "cuda") throw_input("--device cuda: {}; or use --device cpu", obstacle);
    return Device::cpu;
  }
  if constexpr (kHasCuda) cuda::use_device_memory();
  return Device::cuda;
}

std::string describe_device(Device device) {
  if constexpr (kHasCuda) {
    if (device == Device::cuda) return cuda::description();
  }
  return name_of(device);
}

}  // namespace switchyard::ops
