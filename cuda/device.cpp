#include "device.h"

#include "error.h"
#include "launch.h"

namespace switchyard::cuda {

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

// The run's stream may be any: both wait for all of them.
void fill(void* memory, int byte, std::int64_t bytes) {
  SY_CUDA(cudaDeviceSynchronize());
  SY_CUDA(cudaMemset(memory, byte, static_cast<std::size_t>(bytes)));
  SY_CUDA(cudaDeviceSynchronize());
}
void copy(void* to, const void* from, std::int64_t bytes) {
  SY_CUDA(cudaDeviceSynchronize());
  SY_CUDA(cudaMemcpy(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDefault));
}

}  // namespace

void use_device_memory() { set_device_memory(Device::cuda, {allocate, release, fill, copy}); }

void synchronise(Context& ctx) { SY_CUDA(cudaStreamSynchronize(stream_of(ctx))); }

}  // namespace switchyard::cuda
