#include "checkpoint/weights_files.h"

#include <fmt/format.h>

#include <map>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"

namespace switchyard::checkpoint {

namespace {

// In order; a new file begins where the next tensor does not fit.
std::vector<std::span<const WrittenTensor>> cut(const std::vector<WrittenTensor>& tensors,
                                                std::uint64_t max_bytes) {
  std::vector<std::span<const WrittenTensor>> shards;
  std::size_t first = 0;
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (i > first && max_bytes > 0 && bytes + tensors[i].bytes() > max_bytes) {
      shards.push_back(std::span(tensors).subspan(first, i - first));
      first = i;
      bytes = 0;
    }
    bytes += tensors[i].bytes();
  }
  shards.push_back(std::span(tensors).subspan(first));
  return shards;
}

}  // namespace

std::map<std::string, std::string> parse_weights_index(std::string_view text, const std::string& origin) {
  const Json index = parse_stored_json(text, origin);
  if (!index["weight_map"].is_object())
    throw_input("{}: is not an index of weights: it has no object \"weight_map\"", origin);
  std::map<std::string, std::string> files;
  for (const auto& [name, file] : index["weight_map"].object()) {
    if (!file.is_string() || !is_plain_file_name(file.text()))
      throw_input("{}: the file of tensor {} is not the name of a file beside it", origin, in_quotes(name));
    files.emplace(name, file.text());
  }
  return files;
}

FileDigest write_text(const std::filesystem::path& path, const std::string& text) {
  OutputFile file(path);
  file.write(text);
  file.close();
  return {file.bytes_written(), file.crc()};
}

std::vector<std::pair<std::string, FileDigest>> write_weights(const std::filesystem::path& directory,
                                                              const std::vector<WrittenTensor>& tensors,
                                                              std::int64_t max_shard_size) {
  const auto shards = cut(tensors, static_cast<std::uint64_t>(max_shard_size));
  if (shards.size() == 1) return {{kWeightsFile, write_safetensors(directory / kWeightsFile, shards[0])}};
  std::vector<std::pair<std::string, FileDigest>> files;
  std::map<std::string, std::string> file_of;  // sorted by name, as Hugging Face writes it
  std::uint64_t bytes = 0, parameters = 0;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const std::string name = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    files.emplace_back(name, write_safetensors(directory / name, shards[i]));
    for (const WrittenTensor& tensor : shards[i]) {
      file_of.emplace(tensor.from.name, name);
      bytes += tensor.bytes();
      parameters += tensor.bytes() / static_cast<std::uint64_t>(size_of(tensor.type));
    }
  }
  Json::Object weight_map;
  for (const auto& [name, file] : file_of) weight_map.push_back({name, file});
  const Json index(
      Json::Object{{"metadata", Json(Json::Object{{"total_parameters", parameters}, {"total_size", bytes}})},
                   {"weight_map", Json(std::move(weight_map))}});
  files.emplace_back(kWeightsIndex, write_text(directory / kWeightsIndex, to_text(index)));
  return files;
}

}  // namespace switchyard::checkpoint
