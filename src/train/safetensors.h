// The safetensors file format, read: 8 bytes of header length (little-endian), a JSON header that
// gives each tensor's dtype, shape and byte range, then the bytes of the tensors.
//
// The reader trusts nothing: an entry is only handed out once every range of the file was found to lie inside
// it, side by side, without gap or overlap, and of the size that dtype and shape ask for.
#pragma once

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

namespace switchyard::train {

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
  // Gives the memory of a tensor's pages back; reading it again fetches them again.
  void release(const StoredTensor& stored) const { file_.release(stored.bytes); }

 private:
  MappedFile file_;
  std::vector<StoredTensor> tensors_;
  std::unordered_map<std::string, std::size_t> index_;
};

}  // namespace switchyard::train
