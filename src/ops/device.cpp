#include "ops/device.h"

#include <utility>

#include "cuda/device.h"

namespace switchyard::ops {

namespace {

constexpr const char* kNoBackend =
    "this program was built without the CUDA backend; build it with the preset 'cuda'";

}  // namespace

Device choose_device(const std::string& requested) {
  SY_CHECK(requested == "auto" || requested == "cpu" || requested == "cuda", "device \"{}\"", requested);
  if (requested == "cpu") return Device::cpu;
  std::string reason = kNoBackend;
  if constexpr (kHasCuda) reason = cuda::unavailable_reason();
  if (!reason.empty()) {
    if (requested == "cuda") throw_input("--device cuda: {}; or use --device cpu", reason);
    return Device::cpu;
  }
  if constexpr (kHasCuda) cuda::use_device_memory();
  return Device::cuda;
}

DeviceInventory device_inventory() {
  if constexpr (kHasCuda) return cuda::inventory();
  DeviceInventory none;
  none.unusable = kNoBackend;
  return none;
}

void use_device([[maybe_unused]] int number) {
  if constexpr (kHasCuda) {
    cuda::use_device(number);
    cuda::use_device_memory();
  }
}

void set_device_wait_check([[maybe_unused]] std::function<void()> check) {
  if constexpr (kHasCuda) cuda::set_wait_check(std::move(check));
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
    if (ctx.device == Device::cuda) {
      ctx.stream = cuda::run_stream();
      ctx.beside.stream = cuda::stream_beside();
    }
  }
}

Beside::Beside(Context& ctx) : ctx_(ctx), is_own_(ctx.beside.stream != nullptr && !ctx.beside.is_used) {
  if (!is_own_) return;
  if constexpr (kHasCuda) cuda::wait_for_stream(ctx.beside.stream, ctx.stream);
  swap();
}

void Beside::swap() {
  is_open_ = ctx_.beside.is_used = !is_open_;
  std::swap(ctx_.stream, ctx_.beside.stream);
  std::swap(ctx_.scratch, ctx_.beside.scratch);
}

void Beside::end() {
  if (is_open_) swap();
}

void Beside::join() {
  end();
  if constexpr (kHasCuda) {
    if (is_own_) cuda::wait_for_stream(ctx_.stream, ctx_.beside.stream);
  }
}

void upload(Tensor to, Tensor from, Context& ctx) {
  Signature(ctx).like(from, SY_ARG(to), kContiguous).like(to, SY_ARG(from), kContiguous | kAnywhere);
  const auto upload_on_cpu = [](const Tensor& there, const Tensor& here) { copy(there, here); };
  run<&cuda::upload>(ctx, upload_on_cpu, to, from);
}

void Replay::run(Context& ctx, const std::function<void()>& work) {
  if (graph_) {
    if constexpr (kHasCuda) graph_->launch(ctx);
    return;
  }
  if (ctx.device == Device::cpu || !warm_) {
    warm_ = true;
    return work();
  }
  if constexpr (kHasCuda) {
    auto graph = std::make_shared<cuda::Graph>();
    graph->begin(ctx);
    try {
      work();
    } catch (...) {
      graph->abandon(ctx);
      throw;
    }
    graph->end(ctx);
    graph_ = std::move(graph);
    graph_->launch(ctx);
  }
}

std::int64_t Replay::n_recorded() const { return graph_ ? graph_->n_nodes() : 0; }

}  // namespace switchyard::ops
