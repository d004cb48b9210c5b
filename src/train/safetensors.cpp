#include "train/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <unordered_set>
#include <utility>

#include "core/error.h"

namespace switchyard::train {

namespace {

using nlohmann::json;
static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr std::uint64_t kLengthBytes = 8;
// The limit of the format's reference implementation: a header beyond it is a damaged length.
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;

constexpr std::array<StoredType, 6> kTypes = {StoredType::f64,  StoredType::f32, StoredType::f16,
                                              StoredType::bf16, StoredType::i64, StoredType::i32};

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

std::string header_of(std::span<const NamedTensor> tensors) {
  nlohmann::ordered_json header;
  header["__metadata__"] = {{"format", "pt"}};
  std::unordered_set<std::string_view> names;
  std::uint64_t offset = 0;
  std::string text = header.dump();
  text.pop_back();  // the closing brace: members follow
  for (const auto& [name, tensor] : tensors) {
    SY_CHECK(tensor.defined() && tensor.contiguous(), "tensor {} is not contiguous", name);
    SY_CHECK(name != "__metadata__" && names.insert(name).second, "tensor name {} is taken", name);
    nlohmann::ordered_json entry;
    entry["dtype"] = name_of(stored_type(tensor.dtype()));
    auto& shape = entry["shape"] = nlohmann::ordered_json::array();
    for (int i = 0; i < tensor.shape().rank(); ++i) shape.push_back(tensor.dim(i));
    const std::uint64_t end = offset + static_cast<std::uint64_t>(tensor.nbytes());
    entry["data_offsets"] = {offset, end};
    offset = end;
    text += fmt::format(",{}:{}", json(name).dump(), entry.dump());
  }
  text += '}';
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the data begin 8-byte aligned
  return text;
}

// Reads the header's JSON and refuses a key that stands twice in one object, which the parser alone would let
// pass: the last one would win.
json parse_header(std::string_view text, const std::string& path) {
  std::vector<std::set<std::string>> open_objects;
  const auto watch = [&](int, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::object_start) open_objects.emplace_back();
    if (event == json::parse_event_t::object_end) open_objects.pop_back();
    if (event == json::parse_event_t::key && !open_objects.back().insert(value.get<std::string>()).second)
      throw_input("{}: the header has {} twice; the file is damaged", path, value.dump());
    return true;
  };
  try {
    return json::parse(text, watch);
  } catch (const json::exception& error) {
    throw_input("{}: the header is not JSON: {}; the file is damaged or not a safetensors file", path,
                error.what());
  }
}

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

std::string StoredTensor::shape_string() const { return fmt::format("[{}]", fmt::join(shape, ", ")); }

std::uint64_t safetensors_bytes(std::span<const NamedTensor> tensors) {
  std::uint64_t bytes = kLengthBytes + header_of(tensors).size();
  for (const auto& [name, tensor] : tensors) bytes += static_cast<std::uint64_t>(tensor.nbytes());
  return bytes;
}

FileDigest write_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors) {
  const std::string header = header_of(tensors);
  const std::uint64_t length = header.size();
  OutputFile file(path);
  file.write(std::as_bytes(std::span(&length, 1)));
  file.write(header);
  for (const auto& [name, tensor] : tensors)
    file.write({static_cast<const std::byte*>(tensor.raw()), static_cast<std::size_t>(tensor.nbytes())});
  file.close();
  return {file.bytes_written(), file.crc()};
}

SafetensorsFile::SafetensorsFile(std::filesystem::path file_path) : file_(std::move(file_path)) {
  const std::string path = file_.path().string();
  const std::span<const std::byte> bytes = file_.bytes();
  if (bytes.size() < kLengthBytes)
    throw_input("{}: {} bytes are too few for a safetensors file; it was cut", path, bytes.size());
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), kLengthBytes);
  if (header_bytes > kMaxHeaderBytes || header_bytes > bytes.size() - kLengthBytes)
    throw_input("{}: the header's length at byte 0 is {}, but the file has {} bytes; it was cut or is damaged",
                path, header_bytes, bytes.size());
  const auto header_span = bytes.subspan(kLengthBytes, header_bytes);
  const auto data = bytes.subspan(kLengthBytes + header_bytes);
  const json header =
      parse_header({reinterpret_cast<const char*>(header_span.data()), header_span.size()}, path);
  if (!header.is_object()) throw_input("{}: the header is not a JSON object; the file is damaged", path);

  std::vector<Range> ranges;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      if (!entry.is_object() ||
          !std::all_of(entry.begin(), entry.end(), [](const json& value) { return value.is_string(); }))
        throw_input("{}: __metadata__ is not an object of strings; the file is damaged", path);
      continue;
    }
    const auto damaged = [&path = path, &name = name](const std::string& what) {
      throw_input("{}: tensor \"{}\": {}", path, name, what);
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
      damaged(fmt::format("dtype {} is not known; F64, F32, F16, BF16, I64 and I32 are", dtype.dump()));
    tensor.type = *type;

    const json& shape = entry["shape"];
    const auto all_unsigned = [](const json& list) {
      return list.is_array() && std::all_of(list.begin(), list.end(),
                                            [](const json& value) { return value.is_number_unsigned(); });
    };
    if (!all_unsigned(shape)) damaged("its shape is not a list of whole numbers");
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
    ranges.push_back({begin, end, tensors_.size()});
    tensors_.push_back(std::move(tensor));
  }

  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  std::uint64_t expected = 0;
  for (const Range& range : ranges) {
    if (range.begin != expected)
      throw_input("{}: tensor \"{}\" begins at byte {} of the data, but the one before it ends at {}: {}", path,
                  tensors_[range.tensor].name, range.begin, expected,
                  range.begin < expected ? "they overlap" : "a gap");
    expected = range.end;
  }
  if (expected != data.size())
    throw_input("{}: {} bytes of data, but the tensors end at {}; the file is damaged", path, data.size(),
                expected);

  std::vector<StoredTensor> sorted;
  sorted.reserve(tensors_.size());
  for (const Range& range : ranges) sorted.push_back(std::move(tensors_[range.tensor]));
  tensors_ = std::move(sorted);
  for (std::size_t i = 0; i < tensors_.size(); ++i) index_.emplace(tensors_[i].name, i);
}

const StoredTensor* SafetensorsFile::find(std::string_view name) const {
  const auto it = index_.find(std::string(name));
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

namespace {

float float_of_bf16(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); }

float float_of_f16(std::uint16_t bits) {
  const std::uint32_t sign = std::uint32_t{bits & 0x8000u} << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1fu, mantissa = bits & 0x3ffu;
  if (exponent == 0) {  // zero and subnormal numbers: mantissa * 2^-24, exact in float32
    const float value = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(value));
  }
  const std::uint32_t widened = exponent == 31 ? 255u : exponent + 112u;
  return std::bit_cast<float>(sign | (widened << 23) | (mantissa << 13));
}

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
    return;
  }
  const bool read = out.dtype() == DType::f32   ? widen<float>(stored, out)
                    : out.dtype() == DType::f64 ? widen<double>(stored, out)
                                                : false;
  if (!read)
    throw_input("{}: tensor \"{}\" is {}, which does not become {} without loss", path().string(), stored.name,
                name_of(stored.type), name_of(stored_type(out.dtype())));
}

}  // namespace switchyard::train
