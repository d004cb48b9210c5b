// Memory between marks that a write beyond it changes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

namespace simt {

constexpr std::size_t kMarkBytes = 64;
constexpr int kMark = 0xa5;
constexpr int kPoison = 0xff;  // all bits set: NaN in every float type, -1 as an integer

// Of the marks right before and right after `bytes` of memory.
inline void set_marks(std::byte* data, std::size_t bytes) {
  std::memset(data - kMarkBytes, kMark, kMarkBytes);
  std::memset(data + bytes, kMark, kMarkBytes);
}
inline bool marks_are_whole(const std::byte* data, std::size_t bytes) {
  for (std::size_t i = 0; i < kMarkBytes; ++i) {
    if (data[bytes + i] != std::byte{kMark} || *(data - kMarkBytes + i) != std::byte{kMark}) return false;
  }
  return true;
}

// A piece of the host's memory, poisoned, 64-byte aligned.
struct Marked {
  std::unique_ptr<std::byte[]> storage;
  std::size_t bytes;

  explicit Marked(std::size_t size) : storage(new std::byte[size + 3 * kMarkBytes]), bytes(size) {
    std::memset(data(), kPoison, bytes);
    set_marks(data(), bytes);
  }
  std::byte* data() const {
    const auto start = reinterpret_cast<std::uintptr_t>(storage.get()) + kMarkBytes;
    return reinterpret_cast<std::byte*>((start + kMarkBytes - 1) / kMarkBytes * kMarkBytes);
  }
  bool whole() const { return marks_are_whole(data(), bytes); }
};

}  // namespace simt
