#include "ops/device.h"

#include <utility>

#include "core/error.h"
#include "core/log.h"
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

void synchronise([[maybe_unused]] Context& ctx) {
  if constexpr (kHasCuda) {
    if (ctx.device == Device::cuda) cuda::synchronise(ctx);
  }
}

void open_stream(Context& ctx) {
  if constexpr (kHasCuda) {
    if (ctx.device == Device::cuda) {
      ctx.stream = cuda::run_stream();
      ctx.beside.stream = cuda::stream_beside();
    }
  }
}

void expect_no_new_kernels() {
  if constexpr (kHasCuda) cuda::expect_no_new_kernels();
}

LateKernels late_kernels() {
  if constexpr (kHasCuda) return cuda::late_kernels();
  return {};
}

Beside::Beside(Context& ctx) : ctx_(ctx) {
  if (ctx.beside.stream == nullptr || ctx.beside.is_used) return;
  if constexpr (kHasCuda) cuda::StreamPoint(ctx.stream).hold_back(ctx.beside.stream);
  swap();
}

Beside::~Beside() {
  if (is_open_) swap();
}

void Beside::swap() {
  is_open_ = ctx_.beside.is_used = !is_open_;
  std::swap(ctx_.stream, ctx_.beside.stream);
  std::swap(ctx_.scratch, ctx_.beside.scratch);
}

void Beside::end() {
  if (!is_open_) return;
  swap();
  if constexpr (kHasCuda) end_ = std::make_shared<cuda::StreamPoint>(ctx_.beside.stream);
}

void Beside::join() {
  end();
  if constexpr (kHasCuda) {
    if (end_) end_->hold_back(ctx_.stream);
  }
}

void upload(Tensor to, Tensor from, Context& ctx) {
  Signature args(ctx);
  args.like(from, SY_ARG(to), kContiguous).like(to, SY_ARG(from), kContiguous | kAnywhere);
  const auto upload_on_cpu = [](const Tensor& there, const Tensor& here) { copy(there, here); };
  run<&cuda::upload>(ctx, upload_on_cpu, to, from);
}

void Replay::run([[maybe_unused]] Context& ctx, const std::function<void()>& work,
                 [[maybe_unused]] bool alone) {
  if constexpr (kHasCuda) {
    if (ctx.device == Device::cpu || is_called_ || ctx.profile != nullptr) return work();
    if (!std::exchange(warm_, true)) {
      is_called_ = cuda::is_turned_off("SWITCHYARD_NO_GRAPH");
      return work();
    }
    if (!graph_) {
      const std::string reason = record(ctx, work);
      if (!reason.empty() && !alone)
        throw_run("a step cannot be recorded: {}; or set SWITCHYARD_NO_GRAPH=1 on every rank", reason);
      if (!reason.empty()) {
        log_warning("a step is not recorded, and each of its kernels started by the host, which is slower: " +
                    reason);
        is_called_ = true;
        return work();
      }
    }
    graph_->launch(ctx);
  } else {
    work();
  }
}

std::string Replay::record([[maybe_unused]] Context& ctx, [[maybe_unused]] const std::function<void()>& work) {
  if constexpr (kHasCuda) {
    auto graph = std::make_shared<cuda::Graph>();
    try {
      graph->record(ctx, work);
    } catch (const RunError& error) {
      return error.what();
    }
    graph_ = std::move(graph);
  }
  return "";
}

std::int64_t Replay::n_recorded() const { return graph_ ? graph_->n_nodes() : 0; }

}  // namespace switchyard::ops
