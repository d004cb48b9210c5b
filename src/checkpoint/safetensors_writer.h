// The safetensors file format, written: as its reference implementation does it (safetensors.h reads).
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"

namespace switchyard::checkpoint {

// What was written: the figures that a manifest keeps of a file.
struct FileDigest {
  std::uint64_t bytes = 0;
  std::uint32_t crc = 0;
};

// A tensor, in memory or in a mapped file, and the type that it is to have in the file to be written: its own,
// or F32, BF16 or F16 from any of these.
struct WrittenTensor {
  StoredTensor from;
  StoredType type = StoredType::f32;
  const SafetensorsFile* file = nullptr;  // that `from` lies in, if any: its pages are released once written
  Tensor on_device{};                     // defined: `from` has no bytes, only their number; they lie here
  std::uint64_t bytes() const;            // in the file to be written
};

std::vector<WrittenTensor> as_written(std::span<const NamedTensor> tensors);  // each in its own type

// Bytes that write_safetensors would write.
std::uint64_t safetensors_bytes(std::span<const WrittenTensor> tensors);
// Writes the tensors in the order given and syncs the file; names are unique. Numbers are rounded to nearest,
// ties to even. Throws InputError where the file cannot be written, or where a finite number becomes infinite,
// naming the tensor.
FileDigest write_safetensors(const std::filesystem::path& path, std::span<const WrittenTensor> tensors);
FileDigest write_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors);

}  // namespace switchyard::checkpoint
