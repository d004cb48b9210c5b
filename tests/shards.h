// Shard files for tests, whole and broken.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "temp_dir.h"

namespace switchyard::test {

// The bytes of a shard with these tokens, of 2 or 4 bytes each.
inline std::string shard_bytes(const std::vector<std::uint32_t>& tokens, int token_bytes = 2) {
  std::array<std::int32_t, 256> header{};
  header[0] = token_bytes == 2 ? 20240520 : 20240801;
  header[1] = token_bytes == 2 ? 1 : 7;
  header[2] = static_cast<std::int32_t>(tokens.size());
  std::string bytes(reinterpret_cast<const char*>(header.data()), sizeof(header));
  for (const std::uint32_t token : tokens)
    for (int b = 0; b < token_bytes; ++b) bytes.push_back(static_cast<char>(token >> (8 * b) & 0xff));
  return bytes;
}

// The same with one int32 of the header replaced.
inline std::string with_header(std::string bytes, std::size_t field, std::int32_t value) {
  std::memcpy(bytes.data() + 4 * field, &value, sizeof(value));
  return bytes;
}

inline std::filesystem::path write_shard(const std::filesystem::path& path,
                                         const std::vector<std::uint32_t>& tokens, int token_bytes = 2) {
  write_bytes(path, shard_bytes(tokens, token_bytes));
  return path;
}

}  // namespace switchyard::test
