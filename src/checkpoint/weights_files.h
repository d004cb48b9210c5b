// Weights written: the safetensors file format, as its reference implementation does it (safetensors.h reads),
// and the weights of a model as Hugging Face lays them out: model.safetensors, or
// model-00001-of-0000N.safetensors with model.safetensors.index.json.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
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

constexpr const char* kWeightsFile = "model.safetensors";
constexpr const char* kWeightsIndex = "model.safetensors.index.json";

// Tensor name -> name of the file that holds it, from the text of an index. Throws InputError naming `origin`.
std::map<std::string, std::string> parse_weights_index(std::string_view text, const std::string& origin);

// The tensors in files of at most `max_shard_size` bytes of data each (0: one file); a larger tensor has one of
// its own. Returns the names and digests of what was written. Throws like write_safetensors.
std::vector<std::pair<std::string, FileDigest>> write_weights(const std::filesystem::path& directory,
                                                              const std::vector<WrittenTensor>& tensors,
                                                              std::int64_t max_shard_size);

FileDigest write_text(const std::filesystem::path& path, const std::string& text);

}  // namespace switchyard::checkpoint
