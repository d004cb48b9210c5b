// Weights written by one process from front to back: what is exported and dumped. A run's checkpoints are
// written by all of its ranks (shared_writing.h).
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/file_layout.h"
#include "checkpoint/safetensors.h"

namespace switchyard::checkpoint {

// What was written: the figures that a manifest keeps of a file.
struct FileDigest {
  std::uint64_t bytes = 0;
  std::uint32_t crc = 0;
};
using NamedDigests = std::vector<std::pair<std::string, FileDigest>>;

// A tensor, in memory or in a mapped file, and the type that it is to have in the file to be written: its own,
// or F32, BF16 or F16 from any of these.
struct WrittenTensor {
  StoredTensor from;
  StoredType type = StoredType::f32;
  const SafetensorsFile* file = nullptr;  // that `from` lies in, if any: its pages are released once written
  Tensor on_device{};                     // defined: `from` has no bytes, only their number; they lie here
};

std::vector<WrittenTensor> as_written(std::span<const NamedTensor> tensors);  // each in its own type

// Bytes that write_safetensors would write.
std::uint64_t safetensors_bytes(std::span<const WrittenTensor> tensors);
// Writes the tensors in the order given and syncs the file; names are unique. Numbers are rounded to nearest,
// ties to even. Throws InputError where the file cannot be written, or where a finite number becomes infinite,
// naming the tensor.
FileDigest write_safetensors(const std::filesystem::path& path, std::span<const WrittenTensor> tensors);
FileDigest write_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors);

// The tensors in the files of lay_out_weights. Returns the names and digests of what was written. Throws like
// write_safetensors.
NamedDigests write_weights(const std::filesystem::path& directory, const std::vector<WrittenTensor>& tensors,
                           std::int64_t max_shard_size);

FileDigest write_text(const std::filesystem::path& path, const std::string& text);

// Reads a file that was written and synced, from the disk where the system lets go of what it has in its cache.
// Throws InputError where it is not what was written.
void read_back(const std::filesystem::path& path, const FileDigest& written);

}  // namespace switchyard::checkpoint
