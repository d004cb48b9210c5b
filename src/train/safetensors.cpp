#include "train/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/device_memory.h"
#include "core/error.h"
#include "train/json_text.h"
#include "train/small_floats.h"

namespace switchyard::train {

namespace {

using nlohmann::json;
static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr std::uint64_t kLengthBytes = 8;
// The limit of the format's reference implementation: a header beyond it is a damaged length.
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;

constexpr std::array<StoredType, 6> kTypes = {StoredType::f64,  StoredType::f32, StoredType::f16,
                                              StoredType::bf16, StoredType::i64, StoredType::i32};

struct Range {
  std::uint64_t begin, end;
  std::size_t tensor;
};

}  // namespace

const char* name_of(StoredType type) {
  switch (type) {
    case StoredType::f64:
      return "F64";
    case StoredType::f32:
      return "F32";
    case StoredType::f16:
      return "F16";
    case StoredType::bf16:
      return "BF16";
    case StoredType::i64:
      return "I64";
    case StoredType::i32:
      return "I32";
  }
  return "?";
}

std::int64_t size_of(StoredType type) {
  switch (type) {
    case StoredType::f64:
    case StoredType::i64:
      return 8;
    case StoredType::f32:
    case StoredType::i32:
      return 4;
    case StoredType::f16:
    case StoredType::bf16:
      return 2;
  }
  return 0;
}

StoredType stored_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return StoredType::f32;
    case DType::f64:
      return StoredType::f64;
    case DType::bf16:
      return StoredType::bf16;
    case DType::i32:
      return StoredType::i32;
  }
  SY_CHECK(false, "a dtype without a stored type");
  return StoredType::f32;
}

std::string StoredTensor::shape_string() const { return fmt::format("[{}]", fmt::join(shape, ", ")); }

std::vector<StoredTensor> parse_safetensors(std::span<const std::byte> bytes, const std::string& path) {
  if (bytes.size() < kLengthBytes)
    throw_input("{}: {} bytes are too few for a safetensors file; it was cut", path, bytes.size());
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), kLengthBytes);
  if (header_bytes > kMaxHeaderBytes || header_bytes > bytes.size() - kLengthBytes)
    throw_input("{}: the header's length at byte 0 is {}, but the file has {} bytes; it was cut or is damaged",
                path, header_bytes, bytes.size());
  const auto header_span = bytes.subspan(kLengthBytes, header_bytes);
  const auto data = bytes.subspan(kLengthBytes + header_bytes);
  const json header = parse_json_text({reinterpret_cast<const char*>(header_span.data()), header_span.size()},
                                      path + ": the header");
  if (!header.is_object()) throw_input("{}: the header is not a JSON object; the file is damaged", path);

  std::vector<StoredTensor> tensors;
  std::vector<Range> ranges;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      if (!entry.is_object() ||
          !std::all_of(entry.begin(), entry.end(), [](const json& value) { return value.is_string(); }))
        throw_input("{}: __metadata__ is not an object of strings; the file is damaged", path);
      continue;
    }
    const auto damaged = [&path, &name = name](const std::string& what) {
      throw_input("{}: tensor {}: {}", path, in_quotes(name), what);
    };
    if (!entry.is_object() || entry.size() != 3 || !entry.contains("dtype") || !entry.contains("shape") ||
        !entry.contains("data_offsets"))
      damaged("its header entry is not {dtype, shape, data_offsets}");
    StoredTensor tensor;
    tensor.name = name;

    const json& dtype = entry["dtype"];
    const auto* type = std::find_if(kTypes.begin(), kTypes.end(),
                                    [&](StoredType t) { return dtype.is_string() && dtype == name_of(t); });
    if (type == kTypes.end())
      damaged(dtype.is_string() && dtype.get<std::string>().starts_with("F8_")
                  ? fmt::format("dtype {} is quantised, which cannot be read; convert it to BF16", dtype.dump())
                  : fmt::format("dtype {} is not known; F64, F32, F16, BF16, I64 and I32 are",
                                printable(dtype.dump())));
    tensor.type = *type;

    const json& shape = entry["shape"];
    const auto all_unsigned = [](const json& list) {
      return list.is_array() && std::all_of(list.begin(), list.end(),
                                            [](const json& value) { return value.is_number_unsigned(); });
    };
    if (!all_unsigned(shape)) damaged("its shape is not a list of whole numbers");
    constexpr std::size_t kMaxRank = 16;
    if (shape.size() > kMaxRank)
      damaged(fmt::format("it has {} dimensions, more than any tensor of a model", shape.size()));
    std::int64_t size = size_of(tensor.type);
    for (const json& dim : shape) {
      const auto n = dim.get<std::uint64_t>();
      if (n > INT64_MAX || __builtin_mul_overflow(size, static_cast<std::int64_t>(n), &size))
        damaged(fmt::format("its shape {} is impossibly large", shape.dump()));
      tensor.shape.push_back(static_cast<std::int64_t>(n));
    }

    const json& offsets = entry["data_offsets"];
    if (!all_unsigned(offsets) || offsets.size() != 2) damaged("its data_offsets are not two whole numbers");
    const auto begin = offsets[0].get<std::uint64_t>(), end = offsets[1].get<std::uint64_t>();
    if (begin > end || end > data.size())
      damaged(fmt::format("bytes [{}, {}) are outside the {} bytes of data; the file was cut or is damaged",
                          begin, end, data.size()));
    if (end - begin != static_cast<std::uint64_t>(size))
      damaged(fmt::format("{} of shape {} needs {} bytes, but its data_offsets span {}", name_of(tensor.type),
                          shape.dump(), size, end - begin));
    tensor.bytes = data.subspan(begin, end - begin);
    ranges.push_back({begin, end, tensors.size()});
    tensors.push_back(std::move(tensor));
  }

  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  std::uint64_t expected = 0;
  for (const Range& range : ranges) {
    if (range.begin != expected)
      throw_input("{}: tensor {} begins at byte {} of the data, but the one before it ends at {}: {}", path,
                  in_quotes(tensors[range.tensor].name), range.begin, expected,
                  range.begin < expected ? "they overlap" : "a gap");
    expected = range.end;
  }
  if (expected != data.size())
    throw_input("{}: {} bytes of data, but the tensors end at {}; the file is damaged", path, data.size(),
                expected);

  std::vector<StoredTensor> sorted;
  sorted.reserve(tensors.size());
  for (const Range& range : ranges) sorted.push_back(std::move(tensors[range.tensor]));
  return sorted;
}

SafetensorsFile::SafetensorsFile(std::filesystem::path file_path)
    : file_(std::move(file_path)), tensors_(parse_safetensors(file_.bytes(), file_.path().string())) {
  for (std::size_t i = 0; i < tensors_.size(); ++i) index_.emplace(tensors_[i].name, i);
}

const StoredTensor* SafetensorsFile::find(std::string_view name) const {
  const auto it = index_.find(std::string(name));
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

namespace {

// Elements are read with memcpy: nothing promises that they are aligned in the file.
template <class Stored, class T, class Convert>
void convert(std::span<const std::byte> bytes, Tensor out, Convert convert_one) {
  T* const data = out.as<T>();
  const std::int64_t n = out.numel();
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < n; ++i) {
    Stored stored;
    std::memcpy(&stored, bytes.data() + static_cast<std::size_t>(i) * sizeof(Stored), sizeof(Stored));
    data[i] = static_cast<T>(convert_one(stored));
  }
}

template <class T>
bool widen(const StoredTensor& stored, Tensor out) {
  switch (stored.type) {
    case StoredType::bf16:
      convert<std::uint16_t, T>(stored.bytes, out, float_of_bf16);
      return true;
    case StoredType::f16:
      convert<std::uint16_t, T>(stored.bytes, out, float_of_f16);
      return true;
    case StoredType::f32:
      convert<float, T>(stored.bytes, out, [](float value) { return value; });
      return true;
    case StoredType::f64:
    case StoredType::i64:
    case StoredType::i32:
      return false;
  }
  return false;
}

}  // namespace

void SafetensorsFile::read(const StoredTensor& stored, Tensor out) const {
  SY_CHECK(out.defined() && out.contiguous(), "{} is read into a tensor that is not contiguous", stored.name);
  if (out.device() != Device::cpu) {
    const HostCopy host(out);
    read(stored, host.tensor());
    host.write_back();
    return;
  }
  bool same = static_cast<int>(stored.shape.size()) == out.shape().rank();
  for (int i = 0; same && i < out.shape().rank(); ++i)
    same = stored.shape[static_cast<std::size_t>(i)] == out.dim(i);
  if (!same)
    throw_input("{}: tensor \"{}\" has shape {}, expected {}", path().string(), stored.name,
                stored.shape_string(), out.shape().to_string());
  if (stored.type == stored_type(out.dtype())) {
    constexpr std::size_t kPiece = std::size_t{1} << 20;
    const auto pieces = static_cast<std::int64_t>((stored.bytes.size() + kPiece - 1) / kPiece);
    auto* const data = static_cast<std::byte*>(out.raw());
#pragma omp parallel for schedule(static) if (pieces > 1)
    for (std::int64_t i = 0; i < pieces; ++i) {
      const std::size_t begin = static_cast<std::size_t>(i) * kPiece;
      std::memcpy(data + begin, stored.bytes.data() + begin, std::min(kPiece, stored.bytes.size() - begin));
    }
    release(stored);
    return;
  }
  const bool read = out.dtype() == DType::f32   ? widen<float>(stored, out)
                    : out.dtype() == DType::f64 ? widen<double>(stored, out)
                                                : false;
  if (!read)
    throw_input("{}: tensor \"{}\" is {}, which does not become {} without loss", path().string(), stored.name,
                name_of(stored.type), name_of(stored_type(out.dtype())));
  release(stored);
}

}  // namespace switchyard::train
