#include "checkpoint/weights_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <unordered_set>

#include "core/device_memory.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"

namespace switchyard::checkpoint {

namespace {

std::string header_of(std::span<const WrittenTensor> tensors) {
  std::unordered_set<std::string_view> names;
  std::uint64_t offset = 0;
  std::string text = R"({"__metadata__":{"format":"pt"})";
  for (const WrittenTensor& tensor : tensors) {
    const std::string& name = tensor.from.name;
    SY_CHECK(name != "__metadata__" && names.insert(name).second, "tensor name {} is taken", name);
    const std::uint64_t end = offset + tensor.bytes();
    const Json entry(Json::Object{{"dtype", name_of(tensor.type)},
                                  {"shape", Json::list(tensor.from.shape)},
                                  {"data_offsets", Json(Json::Array{offset, end})}});
    offset = end;
    text += fmt::format(",{}:{}", json_string(name), to_line(entry));
  }
  text += '}';
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the data begin 8-byte aligned
  return text;
}

float float_at(const StoredTensor& tensor, std::size_t i) {
  if (tensor.type == StoredType::f32) {
    float value = 0;
    std::memcpy(&value, tensor.bytes.data() + i * sizeof(value), sizeof(value));
    return value;
  }
  std::uint16_t bits = 0;
  std::memcpy(&bits, tensor.bytes.data() + i * sizeof(bits), sizeof(bits));
  return tensor.type == StoredType::bf16 ? float_of_bf16(bits) : float_of_f16(bits);
}

// Piece by piece, so that no second copy of a large tensor is ever held.
void write_converted(OutputFile& file, const WrittenTensor& tensor) {
  constexpr std::size_t kPiece = std::size_t{8} << 20;  // elements
  const std::size_t width = static_cast<std::size_t>(size_of(tensor.type));
  const std::size_t count = tensor.from.bytes.size() / static_cast<std::size_t>(size_of(tensor.from.type));
  std::vector<std::byte> buffer(std::min(count, kPiece) * width);
  for (std::size_t first = 0; first < count; first += kPiece) {
    const std::size_t n = std::min(kPiece, count - first);
    bool overflow = false;
#pragma omp parallel for schedule(static) reduction(|| : overflow)
    for (std::size_t i = 0; i < n; ++i) {
      const float value = float_at(tensor.from, first + i);
      std::byte* const out = buffer.data() + i * width;
      if (tensor.type == StoredType::f32) {
        std::memcpy(out, &value, sizeof(value));
        continue;
      }
      const bool half = tensor.type == StoredType::f16;
      const std::uint16_t bits = half ? f16_of_float(value) : bf16_of_float(value);
      overflow = overflow || std::isinf(half ? float_of_f16(bits) : float_of_bf16(bits));
      std::memcpy(out, &bits, sizeof(bits));
    }
    if (overflow)
      throw_input("tensor {} holds numbers too large for {}; export it as {}", tensor.from.name,
                  name_of(tensor.type), tensor.type == StoredType::f16 ? "bfloat16 or float32" : "float32");
    file.write(std::span(buffer).first(n * width));
  }
}

}  // namespace

std::uint64_t WrittenTensor::bytes() const {
  return from.bytes.size() / static_cast<std::uint64_t>(size_of(from.type)) *
         static_cast<std::uint64_t>(size_of(type));
}

std::vector<WrittenTensor> as_written(std::span<const NamedTensor> tensors) {
  std::vector<WrittenTensor> list;
  for (const auto& [name, tensor] : tensors) {
    SY_CHECK(tensor.defined() && tensor.contiguous(), "tensor {} is not contiguous", name);
    WrittenTensor written;
    written.type = stored_type(tensor.dtype());
    written.from = {
        .name = name,
        .type = written.type,
        .shape = {},
        .bytes = {static_cast<const std::byte*>(tensor.raw()), static_cast<std::size_t>(tensor.nbytes())}};
    if (tensor.device() != Device::cpu) written.on_device = tensor;
    for (int i = 0; i < tensor.shape().rank(); ++i) written.from.shape.push_back(tensor.dim(i));
    list.push_back(std::move(written));
  }
  return list;
}

std::uint64_t safetensors_bytes(std::span<const WrittenTensor> tensors) {
  std::uint64_t bytes = sizeof(std::uint64_t) + header_of(tensors).size();
  for (const WrittenTensor& tensor : tensors) bytes += tensor.bytes();
  return bytes;
}

FileDigest write_safetensors(const std::filesystem::path& path, std::span<const WrittenTensor> tensors) {
  const std::string header = header_of(tensors);
  const std::uint64_t length = header.size();
  OutputFile file(path);
  file.write(std::as_bytes(std::span(&length, 1)));
  file.write(header);
  for (WrittenTensor tensor : tensors) {
    const HostCopy host(tensor.on_device);  // one at a time
    if (tensor.on_device.defined())
      tensor.from.bytes = {static_cast<const std::byte*>(host->raw()), tensor.from.bytes.size()};
    if (tensor.type == tensor.from.type) {
      file.write(tensor.from.bytes);
    } else {
      write_converted(file, tensor);
    }
    if (tensor.file != nullptr) tensor.file->release(tensor.from);
  }
  file.close();
  return {file.bytes_written(), file.crc()};
}

FileDigest write_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors) {
  return write_safetensors(path, as_written(tensors));
}

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
