#include "core/device_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace switchyard {

namespace {

// Large memory lies on large pages where the system gives them to those who ask: products walk over rows that
// are pages apart, and the processor knows the places of some thousand pages only.
void* allocate_host(std::int64_t bytes) {
  constexpr std::int64_t kLargePage = std::int64_t{1} << 21;
  const std::int64_t alignment = bytes >= 2 * kLargePage ? kLargePage : kAlignment;
  const auto rounded = static_cast<std::size_t>((bytes + kAlignment - 1) / kAlignment * kAlignment);
  void* memory = nullptr;
  if (::posix_memalign(&memory, static_cast<std::size_t>(alignment), rounded) != 0) return nullptr;
#ifdef MADV_HUGEPAGE
  // A refusal leaves small pages, which work as well.
  if (alignment == kLargePage) ::madvise(memory, rounded, MADV_HUGEPAGE);
#endif
  return memory;
}
void fill_host(void* memory, int byte, std::int64_t bytes) {
  std::memset(memory, byte, static_cast<std::size_t>(bytes));
}
void copy_host(void* to, const void* from, std::int64_t bytes) {
  std::memmove(to, from, static_cast<std::size_t>(bytes));
}

DeviceMemory memories[] = {{allocate_host, std::free, fill_host, copy_host, allocate_host, std::free, nullptr},
                           {}};

const DeviceMemory& memory_of(Device device) {
  const DeviceMemory& memory = memories[static_cast<std::size_t>(device)];
  SY_CHECK(memory.allocate, "no backend has said how {} gives memory", name_of(device));
  return memory;
}

}  // namespace

void set_device_memory(Device device, const DeviceMemory& memory) {
  memories[static_cast<std::size_t>(device)] = memory;
}

void AlignedFree::operator()(std::byte* p) const {
  const DeviceMemory& memory = memory_of(device);
  if (kind == Kind::staging) return memory.release_staging(p);
  (kind == Kind::exchanged && memory.release_exchanged ? memory.release_exchanged : memory.release)(p);
}

namespace {

double mib(std::int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

AlignedBuffer buffer_of(void* p, std::int64_t bytes, const char* what, const char* kind, AlignedFree free) {
  if (!p) {
    const DeviceMemory& memory = memory_of(free.device);
    throw_run(
        "out of {}memory: {} needs {:.1f} MiB{}; use a smaller model, train.micro_batch_size or train.seq_len",
        kind, what, mib(bytes),
        memory.free && free.kind != AlignedFree::Kind::staging
            ? fmt::format(", {:.1f} MiB are free", mib(memory.free()))
            : "");
  }
  return AlignedBuffer(static_cast<std::byte*>(p), free);
}

}  // namespace

AlignedBuffer allocate_aligned(std::int64_t bytes, const char* what, Device device) {
  return buffer_of(memory_of(device).allocate(std::max<std::int64_t>(bytes, 1)), bytes, what,
                   device == Device::cpu ? "" : "device ", {device});
}

AlignedBuffer allocate_exchanged(std::int64_t bytes, const char* what, Device device) {
  const DeviceMemory& memory = memory_of(device);
  const auto allocate = memory.allocate_exchanged ? memory.allocate_exchanged : memory.allocate;
  return buffer_of(allocate(std::max<std::int64_t>(bytes, 1)), bytes, what,
                   device == Device::cpu ? "" : "device ", {device, AlignedFree::Kind::exchanged});
}

AlignedBuffer allocate_staging(std::int64_t bytes, const char* what, Device device) {
  return buffer_of(memory_of(device).allocate_staging(std::max<std::int64_t>(bytes, 1)), bytes, what, "",
                   {device, AlignedFree::Kind::staging});
}

void fill_bytes(void* memory, int byte, std::int64_t bytes, Device device) {
  if (bytes > 0) memory_of(device).fill(memory, byte, bytes);
}

void copy(const Tensor& to, const Tensor& from) {
  SY_CHECK(to.shape() == from.shape() && to.dtype() == from.dtype(), "a copy of {} {} to {} {}",
           name_of(from.dtype()), from.shape().to_string(), name_of(to.dtype()), to.shape().to_string());
  SY_CHECK(to.contiguous() && from.contiguous(), "a copy between strided tensors");
  if (from.numel() == 0) return;
  const Device device = to.device() == Device::cpu ? from.device() : to.device();
  memory_of(device).copy(to.raw(), from.raw(), from.nbytes());
}

CopyOn::CopyOn(Device device, const Tensor& tensor) : there_(tensor), here_(tensor) {
  if (!tensor.defined() || tensor.device() == device) return;
  memory_ = allocate_aligned(tensor.nbytes(), "a copy of a tensor", device);
  here_ = Tensor(memory_.get(), tensor.shape(), tensor.dtype(), device);
  copy(here_, there_);
}

void CopyOn::write_back() const {
  if (memory_) copy(there_, here_);
}

}  // namespace switchyard
