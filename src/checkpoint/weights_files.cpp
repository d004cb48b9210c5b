#include "checkpoint/weights_files.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/device_memory.h"
#include "core/error.h"
#include "core/file.h"

namespace switchyard::checkpoint {

namespace {

std::vector<TensorSpec> specs_of(std::span<const WrittenTensor> tensors) {
  std::vector<TensorSpec> specs;
  for (const WrittenTensor& tensor : tensors)
    specs.push_back({tensor.from.name, tensor.type, tensor.from.shape});
  return specs;
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

namespace {

FileDigest write_file(const std::filesystem::path& path, const std::string& head,
                      std::span<const WrittenTensor> tensors) {
  OutputFile file(path);
  file.write(head);
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

}  // namespace

std::uint64_t safetensors_bytes(std::span<const WrittenTensor> tensors) {
  return lay_out_file("", specs_of(tensors)).bytes();
}

FileDigest write_safetensors(const std::filesystem::path& path, std::span<const WrittenTensor> tensors) {
  return write_file(path, lay_out_file(path.filename(), specs_of(tensors)).files[0].head, tensors);
}

FileDigest write_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors) {
  return write_safetensors(path, as_written(tensors));
}

FileDigest write_text(const std::filesystem::path& path, const std::string& text) {
  OutputFile file(path);
  file.write(text);
  file.close();
  return {file.bytes_written(), file.crc()};
}

void read_back(const std::filesystem::path& path, const FileDigest& written) {
  const PositionedFile file(path);
  file.forget(0, written.bytes);
  if (file.crc(0, written.bytes) != written.crc)
    throw_input(
        "{}: does not read back as it was written; the disk or the memory is at fault, choose another "
        "directory",
        path.string());
}

NamedDigests write_weights(const std::filesystem::path& directory, const std::vector<WrittenTensor>& tensors,
                           std::int64_t max_shard_size) {
  const FilesLayout layout = lay_out_weights(specs_of(tensors), max_shard_size);
  NamedDigests files;
  std::size_t first = 0;
  for (std::size_t i = 0; i < layout.files.size(); ++i) {
    const auto begin = layout.place_T.begin() + static_cast<std::ptrdiff_t>(first);
    const auto end =
        std::find_if(begin, layout.place_T.end(), [&](const TensorPlace& p) { return p.file != i; });
    const auto count = static_cast<std::size_t>(end - begin);
    const FileLayout& file = layout.files[i];
    files.emplace_back(file.name,
                       write_file(directory / file.name, file.head, std::span(tensors).subspan(first, count)));
    first += count;
  }
  if (!layout.index.empty())
    files.emplace_back(kWeightsIndex, write_text(directory / kWeightsIndex, layout.index));
  return files;
}

}  // namespace switchyard::checkpoint
