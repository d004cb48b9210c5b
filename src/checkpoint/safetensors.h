// The safetensors file format, read: 8 bytes of header length (little-endian), a JSON header that
// gives each tensor's dtype, shape and byte range, then the bytes of the tensors.
//
// The reader trusts nothing: an entry is only handed out once every range of the file was found to lie inside
// it, side by side, without gap or overlap, and of the size that dtype and shape ask for.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/file.h"
#include "core/tensor.h"

namespace switchyard::checkpoint {

struct NamedTensor {
  std::string name;
  Tensor tensor;  // contiguous, on the CPU
};

enum class StoredType : std::uint8_t {
  f64,
  f32,
  f16,
  bf16,
  i64,
  i32,
  i16,
  i8,
  u64,
  u32,
  u16,
  u8,
  boolean,
  c64,
  f8_e5m2,
  f8_e4m3,
  f8_e8m0,
  f8_e4m3fnuz,
  f8_e5m2fnuz,
  f6_e2m3,
  f6_e3m2,
  f4
};
const char* name_of(StoredType type);   // "F64", as in the file
std::int64_t bits_of(StoredType type);  // of one element
std::int64_t size_of(StoredType type);  // bytes of one element; of types of whole bytes
bool is_weight(StoredType type);        // F32, BF16 or F16, which are what weights are read from
bool is_whole_number(StoredType type);  // integers and booleans, which no weight is
StoredType stored_type(DType dtype);

struct StoredTensor {
  std::string name;
  StoredType type = StoredType::f32;
  std::vector<std::int64_t> shape;   // empty: a scalar
  std::span<const std::byte> bytes;  // inside the mapped file
  std::string shape_string() const;  // "[4, 256]"
};

// The tensors of a file's content, in the order of their bytes, which stay where they are. Throws InputError
// naming `path`, the tensor and what is wrong.
std::vector<StoredTensor> parse_safetensors(std::span<const std::byte> bytes, const std::string& path);

class SafetensorsFile {
 public:
  // Maps the file and checks all of its header. Throws InputError naming the file, the tensor and what is
  // wrong.
  explicit SafetensorsFile(std::filesystem::path path);

  const std::filesystem::path& path() const { return file_.path(); }
  const std::vector<StoredTensor>& tensors() const { return tensors_; }  // in the order of their bytes
  const StoredTensor* find(std::string_view name) const;                 // null where there is none

  // Copies a tensor of the file to `out`, which has its shape (else InputError). The dtypes are equal, or the
  // step from one to the other loses nothing: f16, bf16 -> f32, f64 and f32 -> f64. Any other pair is an
  // InputError.
  void read(const StoredTensor& stored, Tensor out) const;
  // The same of elements [first, first + N) of the tensor alone.
  void read(const StoredTensor& stored, std::int64_t first, Tensor out_N) const;
  // Gives the memory of a tensor's pages back; reading it again fetches them again.
  void release(const StoredTensor& stored) const { file_.release(stored.bytes); }

 private:
  MappedFile file_;
  std::vector<StoredTensor> tensors_;
  std::unordered_map<std::string, std::size_t> index_;
};

// bfloat16 and float16 as they lie in files, by their bits.
inline float float_of_bf16(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); }

inline float float_of_f16(std::uint16_t bits) {
  const std::uint32_t sign = std::uint32_t{bits & 0x8000u} << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1fu, mantissa = bits & 0x3ffu;
  if (exponent == 0) {  // zero and subnormal numbers: mantissa * 2^-24, exact in float32
    const float value = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(value));
  }
  const std::uint32_t widened = exponent == 31 ? 255u : exponent + 112u;
  return std::bit_cast<float>(sign | (widened << 23) | (mantissa << 13));
}

// To the nearest, ties to even; beyond the largest number the result is infinite, NaN stays NaN.
inline std::uint16_t bf16_of_float(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline std::uint16_t f16_of_float(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u)
    return static_cast<std::uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));  // NaN
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {
    // Below 2^-14 numbers are multiples of 2^-24. Adding 0.5, whose last bit is 2^-24, rounds to them.
    const float sum = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(sum) - 0x3f000000u));
  }
  const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

}  // namespace switchyard::checkpoint
