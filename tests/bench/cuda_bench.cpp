#include "cuda_bench.h"

#include <cuda_runtime.h>
#include <fmt/core.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <fstream>
#include <memory>

#include "core/rng.h"
#include "cuda/device.h"
#include "cuda/error.h"
#include "cuda/launch.h"

namespace switchyard::bench {

const Sizes kFull{.tokens = 32768,
                  .hidden = 2048,
                  .heads = 16,
                  .kv_heads = 4,
                  .vocab = 151936,
                  .target_tokens = 8192,
                  .parameters = std::int64_t{1} << 28,
                  .n_seq = 4,
                  .seq_len = 4096,
                  .experts = 128,
                  .slots = 8,
                  .expert_width = 768,
                  .routed_tokens = 16384,
                  .gemm_rows = 32768,
                  .router_tokens = 131072,
                  .latent = 16,
                  .product = 8192,
                  .copy_bytes = std::int64_t{2} << 30};
const Sizes kSmoke{.tokens = 24,
                   .hidden = 64,
                   .heads = 4,
                   .kv_heads = 2,
                   .vocab = 500,
                   .target_tokens = 24,
                   .parameters = 5000,
                   .n_seq = 2,
                   .seq_len = 40,
                   .experts = 16,
                   .slots = 2,
                   .expert_width = 32,
                   .routed_tokens = 24,
                   .gemm_rows = 96,
                   .router_tokens = 64,
                   .latent = 8,
                   .product = 128,
                   .copy_bytes = 1 << 16};

namespace {

// Enough values that no product meets the same ones side by side, few enough to be made in a moment.
constexpr std::int64_t kNoise = 1 << 20;

struct Noise {
  std::vector<float> f32;
  std::vector<std::uint16_t> bf16;
  explicit Noise(double scale) {
    const Rng rng(1, RngPurpose::init, 1);
    for (std::int64_t i = 0; i < kNoise; ++i) {
      f32.push_back(static_cast<float>(scale * rng.normal(static_cast<std::uint64_t>(i))));
      bf16.push_back(static_cast<std::uint16_t>((std::bit_cast<std::uint32_t>(f32.back()) + 0x8000u) >> 16));
    }
  }
};

}  // namespace

Tensor Workspace::take(Shape shape, DType dtype) {
  const Tensor measured(nullptr, shape, dtype);
  buffers_.push_back(allocate_aligned(measured.nbytes(), "a benchmark's tensor", ctx_.device));
  bytes_ += measured.nbytes();
  return Tensor(buffers_.back().get(), shape, dtype, ctx_.device);
}

Tensor Workspace::zeros(Shape shape, DType dtype) {
  const Tensor tensor = take(shape, dtype);
  fill_bytes(tensor.raw(), 0, tensor.nbytes(), ctx_.device);
  return tensor;
}

Tensor Workspace::normal(Shape shape, DType dtype, double scale) {
  static const Noise unit(1.0), small(0.02);
  const Noise& noise = scale < 1 ? small : unit;
  void* const values = dtype == DType::bf16 ? const_cast<void*>(static_cast<const void*>(noise.bf16.data()))
                                            : const_cast<void*>(static_cast<const void*>(noise.f32.data()));
  const Tensor host(values, Shape{kNoise}, dtype);
  const Tensor tensor = take(shape, dtype);
  const Tensor flat = tensor.reshape(Shape{tensor.numel()});
  for (std::int64_t done = 0; done < flat.rows();) {  // each tensor begins elsewhere
    const std::int64_t n = std::min(flat.rows() - done, kNoise - next_);
    copy(flat.slice(done, n), host.slice(next_, n));
    done += n;
    next_ = (next_ + n) % kNoise;
  }
  return tensor;
}

Tensor Workspace::ints(Shape shape, const std::vector<std::int32_t>& values) {
  const Tensor tensor = take(shape, DType::i32);
  copy(tensor, Tensor(const_cast<std::int32_t*>(values.data()), shape, DType::i32));
  return tensor;
}

double bytes_of(std::initializer_list<Tensor> tensors) {
  double bytes = 0;
  for (const Tensor& tensor : tensors) bytes += static_cast<double>(tensor.nbytes());
  return bytes;
}

std::string text(const Tensor& tensor) {
  return fmt::format("{} {}", tensor.shape().to_string(), name_of(tensor.dtype()));
}

#ifdef SWITCHYARD_SIMT

namespace {

std::vector<double> call_times(const std::vector<Work>& copies, std::size_t, Context& ctx) {
  const auto start = std::chrono::steady_clock::now();
  copies[0].call(ctx);
  return {std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()};
}
void warm_up(const std::vector<Work>&, Context&) {}

}  // namespace

Platform platform() { return {ops::cuda::description(), "none", "none", true}; }

#else

namespace {

struct Event {
  cudaEvent_t handle{};
  Event() { SY_CUDA(cudaEventCreate(&handle)); }
  ~Event() { (void)cudaEventDestroy(handle); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
};

// All calls are queued before the first result is asked for, so that the device never waits for the host.
std::vector<double> call_times(const std::vector<Work>& copies, std::size_t runs, Context& ctx) {
  const std::vector<Event> begin(runs), end(runs);
  for (std::size_t i = 0; i < runs; ++i) {
    SY_CUDA(cudaEventRecord(begin[i].handle, ops::cuda::stream_of(ctx)));
    copies[i % copies.size()].call(ctx);
    SY_CUDA(cudaEventRecord(end[i].handle, ops::cuda::stream_of(ctx)));
  }
  ops::cuda::synchronise(ctx);
  std::vector<double> seconds;
  for (std::size_t i = 0; i < runs; ++i) {
    float milliseconds = 0;
    SY_CUDA(cudaEventElapsedTime(&milliseconds, begin[i].handle, end[i].handle));
    seconds.push_back(static_cast<double>(milliseconds) * 1e-3);
  }
  return seconds;
}

// Long enough for the clocks to rise again after the host has filled the inputs.
void warm_up(const std::vector<Work>& copies, Context& ctx) {
  const auto start = std::chrono::steady_clock::now();
  do {
    for (const Work& work : copies) work.call(ctx);
    ops::cuda::synchronise(ctx);
  } while (std::chrono::steady_clock::now() - start < std::chrono::milliseconds(100));
}

std::string version(int number) { return fmt::format("{}.{}", number / 1000, number % 1000 / 10); }

}  // namespace

Platform platform() {
  cudaDeviceProp prop;
  SY_CUDA(cudaGetDeviceProperties(&prop, 0));
  int driver = 0, runtime = 0;
  SY_CUDA(cudaDriverGetVersion(&driver));
  SY_CUDA(cudaRuntimeGetVersion(&runtime));
  std::string driver_text;
  if (!std::getline(std::ifstream("/sys/module/nvidia/version"), driver_text))
    driver_text = "of unknown version";
  return {fmt::format("{}, {} multiprocessors, {:.0f} MB of L2", ops::cuda::description(),
                      prop.multiProcessorCount, static_cast<double>(prop.l2CacheSize) * 1e-6),
          fmt::format("{} (CUDA {})", driver_text, version(driver)), version(runtime), false};
}

#endif

Times measure(const Case& measured, bool smoke, Context& ctx, Work& work) {
  constexpr std::int64_t kWorkingSet = std::int64_t{512} << 20;  // ten times an H100's L2
  constexpr std::size_t kMostCopies = 64, kRuns = 31;
  Workspace workspace(ctx);
  std::vector<Work> copies;
  do {
    copies.push_back(measured.make(workspace));
  } while (!smoke && workspace.bytes() < kWorkingSet && copies.size() < kMostCopies);
  if (!smoke) warm_up(copies, ctx);
  std::vector<double> seconds = call_times(copies, smoke ? 1 : kRuns, ctx);
  std::sort(seconds.begin(), seconds.end());
  work = copies[0];
  work.call = nullptr;  // its memory goes with this function
  return {seconds[seconds.size() / 2], seconds.front(), seconds.back()};
}

}  // namespace switchyard::bench
