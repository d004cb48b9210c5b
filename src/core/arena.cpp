#include "core/arena.h"

#include <algorithm>

namespace switchyard {

namespace {

// All bits set is a NaN as f32, f64 and bf16, and -1 as an integer.
constexpr int kPoisonByte = 0xff;

std::int64_t round_up(std::int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

Arena::Arena(std::int64_t bytes, const char* what, Device device)
    : buffer_(allocate_exchanged(bytes, what, device)), device_(device), capacity_(bytes) {}

Tensor Arena::take(Shape shape, DType dtype) {
  const std::int64_t offset = used_;
  used_ += round_up(shape.numel() * size_of(dtype));
  peak_ = std::max(peak_, used_);
  if (capacity_ < 0) return Tensor(nullptr, shape, dtype);
  SY_CHECK(used_ <= capacity_, "an arena of {} bytes was planned, {} are asked for", capacity_, used_);
  return Tensor(buffer_.get() + offset, shape, dtype, device_);
}

void Arena::poison() {
  if (capacity_ > 0) fill_bytes(buffer_.get(), kPoisonByte, capacity_, device_);
}

Tensor Scratch::take(Shape shape, DType dtype) {
  const std::int64_t bytes = round_up(shape.numel() * size_of(dtype));
  while (chunk_ < chunks_.size() && used_ + bytes > chunks_[chunk_].bytes) {
    ++chunk_;
    used_ = 0;
  }
  if (chunk_ == chunks_.size()) {
    chunks_.push_back(
        {measures_ ? AlignedBuffer() : allocate_exchanged(bytes, "an operator's scratch space", device_),
         bytes});
    used_ = 0;
  }
  if (measures_) {
    used_ += bytes;
    in_use_ += bytes;
    peak_ = std::max(peak_, in_use_);
    return Tensor(nullptr, shape, dtype);
  }
  std::byte* p = chunks_[chunk_].buffer.get() + used_;
  used_ += bytes;
  in_use_ += bytes;
  peak_ = std::max(peak_, in_use_);
  if (poison_) fill_bytes(p, kPoisonByte, bytes, device_);
  return Tensor(p, shape, dtype, device_);
}

std::int64_t Scratch::reserved() const {
  std::int64_t bytes = 0;
  for (const Chunk& chunk : chunks_) bytes += chunk.bytes;
  return bytes;
}

void Scratch::settle(std::int64_t at_least) {
  SY_CHECK(in_use_ == 0, "{} bytes of scratch space are in use", in_use_);
  if (chunks_.size() < 2 && reserved() >= at_least) return;
  chunks_.clear();  // before the new one is asked for: both at once may be too much
  const std::int64_t bytes = std::max(peak_, at_least);
  chunks_.push_back({allocate_exchanged(bytes, "the operators' scratch space", device_), bytes});
}

ScratchScope::~ScratchScope() {
  scratch_.chunk_ = chunk_;
  scratch_.used_ = used_;
  scratch_.in_use_ = in_use_;
}

}  // namespace switchyard
