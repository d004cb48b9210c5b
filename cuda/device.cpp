#include "device.h"

#include "error.h"
#include "launch.h"
#include "ops/device.h"

namespace switchyard::ops::cuda {

namespace {

void* allocate(std::int64_t bytes) {
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, static_cast<std::size_t>(bytes));
  if (error == cudaErrorMemoryAllocation) return nullptr;
  SY_CUDA(error);
  return memory;
}

// What a destructor calls must not throw; a failure here is seen by the next call.
void release(void* memory) { (void)cudaFree(memory); }

// Page-locked: copies from it go on while the host does.
void* allocate_staging(std::int64_t bytes) {
  void* memory = nullptr;
  const cudaError_t error = cudaMallocHost(&memory, static_cast<std::size_t>(bytes));
  if (error == cudaErrorMemoryAllocation) return nullptr;
  SY_CUDA(error);
  return memory;
}
void release_staging(void* memory) { (void)cudaFreeHost(memory); }

// The run's stream may be any: both wait for all of them.
void fill(void* memory, int byte, std::int64_t bytes) {
  SY_CUDA(cudaDeviceSynchronize());
  SY_CUDA(cudaMemset(memory, byte, static_cast<std::size_t>(bytes)));
  SY_CUDA(cudaDeviceSynchronize());
}
void copy(void* to, const void* from, std::int64_t bytes) {
  SY_CUDA(cudaDeviceSynchronize());
  SY_CUDA(cudaMemcpy(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDefault));
  SY_CUDA(cudaDeviceSynchronize());  // from pageable memory it may return before the last byte has arrived
}

constexpr int kOldestMajor = 8;  // compute capability: bf16 products and asynchronous copies

cudaDeviceProp properties() {
  cudaDeviceProp prop;
  SY_CUDA(cudaGetDeviceProperties(&prop, 0));
  return prop;
}

int attribute(cudaDeviceAttr name) {
  int device = 0, value = 0;
  SY_CUDA(cudaGetDevice(&device));
  SY_CUDA(cudaDeviceGetAttribute(&value, name, device));
  return value;
}

}  // namespace

std::string unavailable_reason() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess)
    return fmt::format("no CUDA device can be used ({}); install or update NVIDIA's driver",
                       cudaGetErrorString(error));
  if (count == 0) return "there is no CUDA device on this machine";
  const cudaDeviceProp prop = properties();
  if (prop.major >= kOldestMajor) return "";
  return fmt::format("{} has compute capability {}.{}, {}.0 or newer is needed", prop.name, prop.major,
                     prop.minor, kOldestMajor);
}

std::string description() {
  const cudaDeviceProp prop = properties();
  return fmt::format("{}, {:.1f} GiB", prop.name, static_cast<double>(prop.totalGlobalMem) / (1 << 30));
}

bool device_has_wgmma() {
  return attribute(cudaDevAttrComputeCapabilityMajor) == 9 && attribute(cudaDevAttrComputeCapabilityMinor) == 0;
}

int multiprocessors() { return attribute(cudaDevAttrMultiProcessorCount); }

std::size_t shared_bytes_of_block() {
  return static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
}

void check_shared_bytes(const char* op, std::size_t bytes) {
  const std::size_t most = shared_bytes_of_block();
  if (bytes > most)
    throw_run(
        "{}: a block needs {} KiB of shared memory, {} gives {}; use narrower heads or layers, or a device of "
        "compute capability 8.0 (163 KiB) or 9.0 (227 KiB)",
        op, (bytes + 1023) / 1024, properties().name, most / 1024);
}

std::int64_t free_memory() {
  std::size_t free = 0, total = 0;
  SY_CUDA(cudaMemGetInfo(&free, &total));
  return static_cast<std::int64_t>(free);
}

void use_device_memory() {
  set_device_memory(Device::cuda, {allocate, release, fill, copy, allocate_staging, release_staging});
}

void upload(Tensor to, Tensor from, Context& ctx) {
  SY_CUDA(cudaMemcpyAsync(to.raw(), from.raw(), static_cast<std::size_t>(from.nbytes()), cudaMemcpyHostToDevice,
                          stream_of(ctx)));
}

void synchronise(Context& ctx) { SY_CUDA(cudaStreamSynchronize(stream_of(ctx))); }

}  // namespace switchyard::ops::cuda
