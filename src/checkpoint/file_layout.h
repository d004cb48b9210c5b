// Where tensors lie in the files of a checkpoint or an export. It follows from names, types and shapes alone,
// so that every rank of a run knows where its part of each tensor belongs.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/safetensors.h"

namespace switchyard::checkpoint {

constexpr const char* kWeightsFile = "model.safetensors";
constexpr const char* kWeightsIndex = "model.safetensors.index.json";

struct TensorSpec {
  std::string name;
  StoredType type = StoredType::f32;
  std::vector<std::int64_t> shape;
  std::uint64_t elements() const;
  std::uint64_t bytes() const;
};

struct FileLayout {
  std::string name;         // "model.safetensors"
  std::string head;         // the bytes before the first tensor: the header and its length
  std::uint64_t bytes = 0;  // of the whole file
};
struct TensorPlace {
  std::size_t file = 0;
  std::uint64_t offset = 0;  // of its first byte in the file
};

struct FilesLayout {
  std::vector<FileLayout> files;
  std::vector<TensorPlace> place_T;  // of each tensor, in the order given
  std::string index;                 // the text of kWeightsIndex; empty: there is one file and no index
  std::uint64_t bytes() const;       // of all files, the index included
};

// All tensors in one safetensors file, side by side in the order given; names are unique.
FilesLayout lay_out_file(const std::string& name, std::span<const TensorSpec> tensors);

// The weights of a model as Hugging Face lays them out: files of at most `max_shard_size` bytes of data each
// (0: one file); a larger tensor has one of its own.
FilesLayout lay_out_weights(std::span<const TensorSpec> tensors, std::int64_t max_shard_size);

// Tensor name -> name of the file that holds it, from the text of an index. Throws InputError naming `origin`.
std::map<std::string, std::string> parse_weights_index(std::string_view text, const std::string& origin);

}  // namespace switchyard::checkpoint
