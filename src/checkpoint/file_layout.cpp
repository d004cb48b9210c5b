#include "checkpoint/file_layout.h"

#include <fmt/format.h>

#include <cstring>
#include <unordered_set>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"

namespace switchyard::checkpoint {

namespace {

// The header and, before it, its length.
std::string head_of(std::span<const TensorSpec> tensors) {
  std::unordered_set<std::string_view> names;
  std::uint64_t offset = 0;
  std::string text = R"({"__metadata__":{"format":"pt"})";
  for (const TensorSpec& tensor : tensors) {
    SY_CHECK(tensor.name != "__metadata__" && names.insert(tensor.name).second, "tensor name {} is taken",
             tensor.name);
    const std::uint64_t end = offset + tensor.bytes();
    const Json::Object entry{{"dtype", name_of(tensor.type)},
                             {"shape", Json::list(tensor.shape)},
                             {"data_offsets", Json::Array{offset, end}}};
    offset = end;
    text += fmt::format(",{}:{}", json_string(tensor.name), to_line(entry));
  }
  text += '}';
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the data begin 8-byte aligned
  const std::uint64_t length = text.size();
  std::string head(sizeof(length), '\0');
  std::memcpy(head.data(), &length, sizeof(length));
  return head + text;
}

void add_file(FilesLayout& layout, std::string name, std::span<const TensorSpec> tensors) {
  FileLayout file{.name = std::move(name), .head = head_of(tensors)};
  file.bytes = file.head.size();
  for (const TensorSpec& tensor : tensors) {
    layout.place_T.push_back({layout.files.size(), file.bytes});
    file.bytes += tensor.bytes();
  }
  layout.files.push_back(std::move(file));
}

// In order; a new file begins where the next tensor does not fit.
std::vector<std::span<const TensorSpec>> cut(std::span<const TensorSpec> tensors, std::uint64_t max_bytes) {
  std::vector<std::span<const TensorSpec>> shards;
  std::size_t first = 0;
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (i > first && max_bytes > 0 && bytes + tensors[i].bytes() > max_bytes) {
      shards.push_back(tensors.subspan(first, i - first));
      first = i;
      bytes = 0;
    }
    bytes += tensors[i].bytes();
  }
  shards.push_back(tensors.subspan(first));
  return shards;
}

}  // namespace

std::uint64_t TensorSpec::elements() const {
  std::uint64_t count = 1;
  for (const std::int64_t n : shape) count *= static_cast<std::uint64_t>(n);
  return count;
}

std::uint64_t TensorSpec::bytes() const { return elements() * static_cast<std::uint64_t>(size_of(type)); }

std::uint64_t FilesLayout::bytes() const {
  std::uint64_t sum = index.size();
  for (const FileLayout& file : files) sum += file.bytes;
  return sum;
}

FilesLayout lay_out_file(const std::string& name, std::span<const TensorSpec> tensors) {
  FilesLayout layout;
  add_file(layout, name, tensors);
  return layout;
}

FilesLayout lay_out_weights(std::span<const TensorSpec> tensors, std::int64_t max_shard_size) {
  const auto shards = cut(tensors, static_cast<std::uint64_t>(max_shard_size));
  if (shards.size() == 1) return lay_out_file(kWeightsFile, tensors);
  FilesLayout layout;
  std::map<std::string, std::string> file_of;  // sorted by name, as Hugging Face writes it
  std::uint64_t bytes = 0, parameters = 0;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const std::string name = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    add_file(layout, name, shards[i]);
    for (const TensorSpec& tensor : shards[i]) {
      file_of.emplace(tensor.name, name);
      bytes += tensor.bytes();
      parameters += tensor.elements();
    }
  }
  Json::Object weight_map;
  for (const auto& [name, file] : file_of) weight_map.push_back({name, file});
  layout.index = to_text(Json(
      Json::Object{{"metadata", Json(Json::Object{{"total_parameters", parameters}, {"total_size", bytes}})},
                   {"weight_map", Json(std::move(weight_map))}}));
  return layout;
}

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

}  // namespace switchyard::checkpoint
