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

void fill(void* memory, int byte, std::int64_t bytes) {
  SY_CUDA(cudaMemsetAsync(memory, byte, static_cast<std::size_t>(bytes), nullptr));
  SY_CUDA(cudaStreamSynchronize(nullptr));
}

}  // namespace

void use_device_memory() { set_device_memory(Device::cuda, {allocate, release, fill}); }

void copy(const Tensor& to, const Tensor& from, Context& ctx) {
  SY_CHECK(to.shape() == from.shape() && to.dtype() == from.dtype(), "a copy of {} {} to {} {}",
           name_of(from.dtype()), from.shape().to_string(), name_of(to.dtype()), to.shape().to_string());
  SY_CHECK(to.contiguous() && from.contiguous(), "a copy between strided tensors");
  const bool to_host = to.device() == Device::cpu, from_host = from.device() == Device::cpu;
  SY_CHECK(!(to_host && from_host), "a copy that touches no device");
  const cudaMemcpyKind kind =
      to_host ? cudaMemcpyDeviceToHost : (from_host ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToDevice);
  SY_CUDA(cudaMemcpyAsync(to.raw(), from.raw(), static_cast<std::size_t>(from.nbytes()), kind, stream_of(ctx)));
  if (to_host || from_host) synchronise(ctx);
}

Tensor on_device(const Tensor& tensor, Context& ctx) {
  const Tensor room = room_for(tensor, ctx);
  if (room.raw() != tensor.raw()) copy(room, tensor, ctx);
  return room;
}

Tensor room_for(const Tensor& result, Context& ctx) {
  return result.device() == Device::cuda ? result : ctx.scratch.take(result.shape(), result.dtype());
}

void deliver(const Tensor& result, const Tensor& room, Context& ctx) {
  if (room.raw() != result.raw()) copy(result, room, ctx);
}

void synchronise(Context& ctx) { SY_CUDA(cudaStreamSynchronize(stream_of(ctx))); }

}  // namespace switchyard::cuda
