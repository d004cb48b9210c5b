#include "checkpoint/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <utility>

#include "core/device_memory.h"
#include "core/error.h"
#include "core/json.h"

namespace switchyard::checkpoint {

namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr std::uint64_t kLengthBytes = 8;
// The limit of the format's reference implementation: a header beyond it is a damaged length.
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;

// The types of the format, whole: a tensor that nobody asks for does not spoil the file.
struct TypeInfo {
  StoredType type;
  const char* name;
  std::int64_t bits;
};
constexpr TypeInfo kTypes[] = {{StoredType::f64, "F64", 64},
                               {StoredType::f32, "F32", 32},
                               {StoredType::f16, "F16", 16},
                               {StoredType::bf16, "BF16", 16},
                               {StoredType::i64, "I64", 64},
                               {StoredType::i32, "I32", 32},
                               {StoredType::i16, "I16", 16},
                               {StoredType::i8, "I8", 8},
                               {StoredType::u64, "U64", 64},
                               {StoredType::u32, "U32", 32},
                               {StoredType::u16, "U16", 16},
                               {StoredType::u8, "U8", 8},
                               {StoredType::boolean, "BOOL", 8},
                               {StoredType::c64, "C64", 64},
                               {StoredType::f8_e5m2, "F8_E5M2", 8},
                               {StoredType::f8_e4m3, "F8_E4M3", 8},
                               {StoredType::f8_e8m0, "F8_E8M0", 8},
                               {StoredType::f8_e4m3fnuz, "F8_E4M3FNUZ", 8},
                               {StoredType::f8_e5m2fnuz, "F8_E5M2FNUZ", 8},
                               {StoredType::f6_e2m3, "F6_E2M3", 6},
                               {StoredType::f6_e3m2, "F6_E3M2", 6},
                               {StoredType::f4, "F4", 4}};

const TypeInfo& info_of(StoredType type) {
  const auto* found = std::find_if(std::begin(kTypes), std::end(kTypes),
                                   [&](const TypeInfo& info) { return info.type == type; });
  SY_CHECK(found != std::end(kTypes), "a stored type without a name");
  return *found;
}

// The bytes [begin, end) of the data, and which tensor they are.
struct Range {
  std::uint64_t begin, end;
  std::size_t tensor;
};

// None where it is not a list of whole numbers.
std::optional<std::vector<std::uint64_t>> counts_in(const Json& list) {
  if (!list.is_array()) return std::nullopt;
  std::vector<std::uint64_t> counts;
  for (const Json& value : list.array()) {
    const std::optional<std::uint64_t> count = value.whole();
    if (!count) return std::nullopt;
    counts.push_back(*count);
  }
  return counts;
}

// A tensor's entry in the header, {dtype, shape, data_offsets}, read member by member. What else it holds is
// passed over, as the format's own reader does.
class HeaderEntry {
 public:
  HeaderEntry(const std::string& path, const std::string& name, const Json& entry)
      : path_(path), name_(name), entry_(entry) {
    if (!entry.is_object() || !entry.contains("dtype") || !entry.contains("shape") ||
        !entry.contains("data_offsets"))
      fail("its header entry is not {dtype, shape, data_offsets}");
  }

  // Its range lies inside the `data_bytes` of data and has the size that dtype and shape ask for.
  StoredTensor read(std::uint64_t data_bytes, Range& range) const {
    const TypeInfo& type = read_type();
    StoredTensor tensor{.name = name_, .type = type.type, .shape = {}, .bytes = {}};
    const std::int64_t bits = read_shape(type.bits, tensor.shape);
    read_range(data_bytes, range);
    if (bits % 8 != 0 || range.end - range.begin != static_cast<std::uint64_t>(bits / 8))
      fail(fmt::format("{} of shape {} needs {} bytes, but its data_offsets span {}", type.name,
                       to_line(entry_["shape"]), static_cast<double>(bits) / 8, range.end - range.begin));
    return tensor;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw_input("{}: tensor {}: {}", path_, in_quotes(name_), what);
  }

  const TypeInfo& read_type() const {
    const Json& dtype = entry_["dtype"];
    const auto* type = std::find_if(std::begin(kTypes), std::end(kTypes), [&](const TypeInfo& info) {
      return dtype.is_string() && dtype.text() == info.name;
    });
    if (type == std::end(kTypes))
      fail(fmt::format("dtype {} is none of the format's", printable(to_line(dtype))));
    return *type;
  }

  // Returns the bits of all elements.
  std::int64_t read_shape(std::int64_t bits_of_one, std::vector<std::int64_t>& dims) const {
    constexpr std::size_t kMaxRank = 16;
    const Json& shape = entry_["shape"];
    const auto counts = counts_in(shape);
    if (!counts) fail("its shape is not a list of whole numbers");
    if (counts->size() > kMaxRank)
      fail(fmt::format("it has {} dimensions, more than any tensor of a model", counts->size()));
    std::int64_t bits = bits_of_one;
    for (const std::uint64_t n : *counts) {
      if (n > INT64_MAX || __builtin_mul_overflow(bits, static_cast<std::int64_t>(n), &bits))
        fail(fmt::format("its shape {} is impossibly large", to_line(shape)));
      dims.push_back(static_cast<std::int64_t>(n));
    }
    return bits;
  }

  void read_range(std::uint64_t data_bytes, Range& range) const {
    const auto offsets = counts_in(entry_["data_offsets"]);
    if (!offsets || offsets->size() != 2) fail("its data_offsets are not two whole numbers");
    range.begin = (*offsets)[0];
    range.end = (*offsets)[1];
    if (range.begin > range.end || range.end > data_bytes)
      fail(fmt::format("bytes [{}, {}) are outside the {} bytes of data; the file was cut or is damaged",
                       range.begin, range.end, data_bytes));
  }

  const std::string& path_;
  const std::string& name_;
  const Json& entry_;
};

void check_metadata(const Json& entry, const std::string& path) {
  const bool of_strings =
      entry.is_object() && std::all_of(entry.object().begin(), entry.object().end(),
                                       [](const JsonMember& member) { return member.value.is_string(); });
  if (!of_strings && !entry.is_null())
    throw_input("{}: __metadata__ is not an object of strings; the file is damaged", path);
}

// Sorts the ranges, which then cover the data from its first byte to its last, side by side.
void sort_and_check(std::vector<Range>& ranges, const std::vector<StoredTensor>& tensors,
                    std::uint64_t data_bytes, const std::string& path) {
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
  if (expected != data_bytes)
    throw_input("{}: {} bytes of data, but the tensors end at {}; the file is damaged", path, data_bytes,
                expected);
}

}  // namespace

const char* name_of(StoredType type) { return info_of(type).name; }

std::int64_t bits_of(StoredType type) { return info_of(type).bits; }

std::int64_t size_of(StoredType type) {
  SY_CHECK(bits_of(type) % 8 == 0, "an element of {} is no whole byte", name_of(type));
  return bits_of(type) / 8;
}

bool is_weight(StoredType type) {
  return type == StoredType::f32 || type == StoredType::bf16 || type == StoredType::f16;
}

bool is_whole_number(StoredType type) {
  const std::string_view name = name_of(type);
  return name.starts_with('I') || name.starts_with('U') || type == StoredType::boolean;
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
  std::uint64_t header_bytes = 0;
  if (bytes.size() >= kLengthBytes) std::memcpy(&header_bytes, bytes.data(), kLengthBytes);
  if (bytes.size() < kLengthBytes || header_bytes > kMaxHeaderBytes ||
      header_bytes > bytes.size() - kLengthBytes) {
    if (const std::string other = stand_in(bytes); !other.empty()) throw_input("{}: {}", path, other);
    if (bytes.size() < kLengthBytes)
      throw_input("{}: {} bytes are too few for a safetensors file; it was cut", path, bytes.size());
    throw_input("{}: the header's length at byte 0 is {}, but the file has {} bytes; it was cut or is damaged",
                path, header_bytes, bytes.size());
  }
  const auto header_span = bytes.subspan(kLengthBytes, header_bytes);
  const auto data = bytes.subspan(kLengthBytes + header_bytes);
  const Json header = sorted(parse_stored_json(
      {reinterpret_cast<const char*>(header_span.data()), header_span.size()}, path + ": the header"));
  if (!header.is_object()) throw_input("{}: the header is not a JSON object; the file is damaged", path);

  std::vector<StoredTensor> tensors;
  std::vector<Range> ranges;
  for (const auto& [name, entry] : header.object()) {
    if (name == "__metadata__") {
      check_metadata(entry, path);
      continue;
    }
    Range range{.begin = 0, .end = 0, .tensor = tensors.size()};
    tensors.push_back(HeaderEntry(path, name, entry).read(data.size(), range));
    tensors.back().bytes = data.subspan(range.begin, range.end - range.begin);
    ranges.push_back(range);
  }
  sort_and_check(ranges, tensors, data.size(), path);

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

void copy_bytes(std::span<const std::byte> bytes, Tensor out) {
  constexpr std::size_t kPiece = std::size_t{1} << 20;
  const auto pieces = static_cast<std::int64_t>((bytes.size() + kPiece - 1) / kPiece);
  auto* const data = static_cast<std::byte*>(out.raw());
#pragma omp parallel for schedule(static) if (pieces > 1)
  for (std::int64_t i = 0; i < pieces; ++i) {
    const std::size_t begin = static_cast<std::size_t>(i) * kPiece;
    std::memcpy(data + begin, bytes.data() + begin, std::min(kPiece, bytes.size() - begin));
  }
}

template <class T>
bool widen(StoredType type, std::span<const std::byte> bytes, Tensor out) {
  switch (type) {
    case StoredType::bf16:
      convert<std::uint16_t, T>(bytes, out, float_of_bf16);
      return true;
    case StoredType::f16:
      convert<std::uint16_t, T>(bytes, out, float_of_f16);
      return true;
    case StoredType::f32:
      convert<float, T>(bytes, out, [](float value) { return value; });
      return true;
    default:
      return false;
  }
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
  read(stored, 0, out.reshape({out.numel()}));
}

void SafetensorsFile::read(const StoredTensor& stored, std::int64_t first, Tensor out_N) const {
  if (out_N.device() != Device::cpu) {
    const HostCopy host(out_N);
    read(stored, first, host.tensor());
    host.write_back();
    return;
  }
  if (out_N.numel() == 0) return;
  const auto at = [&](std::int64_t element) {
    return static_cast<std::size_t>(element * bits_of(stored.type) / 8);
  };
  const std::int64_t end = first + out_N.numel();
  SY_CHECK(first >= 0 && at(end) <= stored.bytes.size(), "elements [{}, {}) of {} {}", first, end, stored.name,
           stored.shape_string());
  const std::span<const std::byte> part = stored.bytes.subspan(at(first), at(end) - at(first));
  bool known = true;
  if (stored.type == stored_type(out_N.dtype())) {
    copy_bytes(part, out_N);
  } else if (out_N.dtype() == DType::f32) {
    known = widen<float>(stored.type, part, out_N);
  } else {
    known = out_N.dtype() == DType::f64 && widen<double>(stored.type, part, out_N);
  }
  if (!known)
    throw_input("{}: tensor \"{}\" is {}, which does not become {} without loss", path().string(), stored.name,
                name_of(stored.type), name_of(stored_type(out_N.dtype())));
  file_.release(part);
}

}  // namespace switchyard::checkpoint
