// Memory of the host and of devices, and copies between them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/tensor.h"

namespace switchyard {

constexpr std::int64_t kAlignment = 64;  // bytes: one cache line, one AVX-512 register

struct AlignedFree {
  Device device = Device::cpu;
  enum class Kind : std::uint8_t { plain, exchanged, staging } kind = Kind::plain;
  void operator()(std::byte* p) const;
};
using AlignedBuffer = std::unique_ptr<std::byte[], AlignedFree>;
// Bytes that are not initialised, of the host or of a device. Throws RunError, naming the size, where there is
// no memory left.
AlignedBuffer allocate_aligned(std::int64_t bytes, const char* what, Device device = Device::cpu);

// The same for memory that ranks send from and receive in: a library by which devices meet may have its own.
AlignedBuffer allocate_exchanged(std::int64_t bytes, const char* what, Device device = Device::cpu);

// Host memory from which the device copies while the host goes on; plain memory for the CPU itself.
AlignedBuffer allocate_staging(std::int64_t bytes, const char* what, Device device);

// Every byte becomes `byte`; done when it returns.
void fill_bytes(void* memory, int byte, std::int64_t bytes, Device device);

// Copies the elements of a contiguous tensor, wherever the two lie; same shape and dtype. Waits for the device
// before and after, so it is for set-up, read-backs and files, not for the inner loop.
void copy(const Tensor& to, const Tensor& from);

// What a backend says once about its device, before the first use of it. The CPU's is built in.
struct DeviceMemory {
  void* (*allocate)(std::int64_t bytes);  // null where there is none left
  void (*release)(void* memory);
  void (*fill)(void* memory, int byte, std::int64_t bytes);
  void (*copy)(void* to, const void* from, std::int64_t bytes);  // any of the two on the device
  void* (*allocate_staging)(std::int64_t bytes);
  void (*release_staging)(void* memory);
  std::int64_t (*free)();  // bytes that are left; null: not known
  // For memory that is exchanged; null: as all other.
  void* (*allocate_exchanged)(std::int64_t bytes) = nullptr;
  void (*release_exchanged)(void* memory) = nullptr;
};
void set_device_memory(Device device, const DeviceMemory& memory);

// A view of a tensor that `device` can access: the tensor itself, or a copy on that device, made now.
// write_back() copies what was written there to the tensor.
class CopyOn {
 public:
  CopyOn(Device device, const Tensor& tensor);
  const Tensor& tensor() const { return here_; }
  const Tensor* operator->() const { return &here_; }
  void write_back() const;

 private:
  Tensor there_, here_;
  AlignedBuffer memory_;
};
class HostCopy : public CopyOn {
 public:
  explicit HostCopy(const Tensor& tensor) : CopyOn(Device::cpu, tensor) {}
};

}  // namespace switchyard
