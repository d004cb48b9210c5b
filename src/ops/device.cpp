#include "ops/device.h"

#include "cuda/device.h"
#include "cuda/graph.h"

namespace switchyard::ops {

Device choose_device(const std::string& requested) {
  SY_CHECK(requested == "auto" || requested == "cpu" || requested == "cuda", "device \"{}\"", requested);
  if (requested == "cpu") return Device::cpu;
  std::string reason = "this program was built without the CUDA backend; build it with the preset 'cuda'";
  if constexpr (kHasCuda) reason = cuda::unavailable_reason();
  if (!reason.empty()) {
    if (requested == "cuda") throw_input("--device cuda: {}; or use --device cpu", reason);
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

std::optional<std::int64_t> free_memory(Device device) {
  if constexpr (kHasCuda) {
    if (device == Device::cuda) return cuda::free_memory();
  }
  return std::nullopt;
}

void open_stream(Context& ctx) {
  if constexpr (kHasCuda) {
    if (ctx.device == Device::cuda) ctx.stream = cuda::run_stream();
  }
}

void upload(Tensor to, Tensor from, Context& ctx) {
  Signature(ctx).like(from, SY_ARG(to), kContiguous).like(to, SY_ARG(from), kContiguous | kAnywhere);
  const auto upload_on_cpu = [](const Tensor& there, const Tensor& here) { copy(there, here); };
  run<&cuda::upload>(ctx, upload_on_cpu, to, from);
}

}  // namespace switchyard::ops
