// The weights of a model as Hugging Face lays them out: model.safetensors, or model-00001-of-0000N.safetensors
// with model.safetensors.index.json.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/safetensors_writer.h"

namespace switchyard::checkpoint {

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
