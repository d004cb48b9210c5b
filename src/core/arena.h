// Memory owners. An Arena is planned once (measure, allocate, hand out views) and lives as long as the run; a
// Scratch is a stack for what one operator needs while it runs. After the first step neither allocates.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/device_memory.h"
#include "core/tensor.h"

namespace switchyard {

// A bump allocator. Plan twice with the same code: into a measuring arena, whose tensors have no memory, then
// into one of that size.
class Arena {
 public:
  static Arena measuring() { return Arena(); }
  Arena(std::int64_t bytes, const char* what, Device device = Device::cpu);

  // A tensor that is not initialised, aligned to kAlignment. Throws std::logic_error past the planned size.
  Tensor take(Shape shape, DType dtype);
  std::int64_t used() const { return used_; }
  std::int64_t peak() const { return peak_; }  // the most that was in use: what to allocate after measuring
  // Gives back all that was taken since used() was `mark`: tensors of two phases may share memory.
  void rewind(std::int64_t mark) { used_ = mark; }
  // Fills all of it with NaN (every float and double in it reads as NaN), to prove that nothing stale is read.
  void poison();

 private:
  Arena() = default;
  AlignedBuffer buffer_;
  Device device_ = Device::cpu;
  std::int64_t capacity_ = -1;  // -1: measuring
  std::int64_t used_ = 0;
  std::int64_t peak_ = 0;
};

// A stack of short-lived tensors. It grows while it is first used and then stays.
class Scratch {
 public:
  explicit Scratch(Device device = Device::cpu) : device_(device) {}
  // One whose tensors have no memory: what is asked for is counted alone, pieces and all.
  static Scratch measuring() {
    Scratch scratch;
    scratch.measures_ = true;
    return scratch;
  }
  bool measures() const { return measures_; }
  Tensor take(Shape shape, DType dtype);
  // When set, every tensor handed out is filled with NaN first.
  void set_poison(bool on) { poison_ = on; }
  std::int64_t reserved() const;               // bytes that it has grown to
  std::int64_t peak() const { return peak_; }  // the most that was in use at once
  // While nothing is taken: one piece of memory instead of those it grew by, as large as was in use at once, or
  // as `at_least`.
  void settle(std::int64_t at_least = 0);

 private:
  friend class ScratchScope;
  struct Chunk {
    AlignedBuffer buffer;
    std::int64_t bytes;
  };
  Device device_;
  std::vector<Chunk> chunks_;
  std::size_t chunk_ = 0;               // the one in use
  std::int64_t used_ = 0;               // bytes used in it
  std::int64_t in_use_ = 0, peak_ = 0;  // bytes of all chunks, and the most of them so far
  bool poison_ = false, measures_ = false;
};

// Gives back, at the end of a block, all that was taken from a Scratch within it.
class ScratchScope {
 public:
  explicit ScratchScope(Scratch& scratch)
      : scratch_(scratch), chunk_(scratch.chunk_), used_(scratch.used_), in_use_(scratch.in_use_) {}
  ~ScratchScope();
  ScratchScope(const ScratchScope&) = delete;
  ScratchScope& operator=(const ScratchScope&) = delete;

 private:
  Scratch& scratch_;
  std::size_t chunk_;
  std::int64_t used_, in_use_;
};

}  // namespace switchyard
