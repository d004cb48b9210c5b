// Token shards in llm.c's format: a header of 256 int32 (magic, version, token count, zeros), then the tokens.
//   magic 20240520, version 1: uint16 tokens;  magic 20240801, version 7: uint32 tokens.   Little-endian.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>

#include "core/file.h"

namespace switchyard::data {

constexpr std::int64_t kShardHeaderBytes = 1024;

class Shard {
 public:
  // Maps the file and checks magic, version and that its size is the header's token count. Throws InputError.
  explicit Shard(std::filesystem::path path);
  std::int64_t size() const { return n_tokens_; }            // tokens
  std::int64_t token_bytes() const { return token_bytes_; }  // 2 or 4
  const std::filesystem::path& path() const { return file_.path(); }
  // tokens [first, first + out.size()) -> out; within size(). A uint32 above INT32_MAX reads as negative.
  void read(std::int64_t first, std::span<std::int32_t> out) const;
  std::int64_t byte_offset(std::int64_t token) const { return kShardHeaderBytes + token * token_bytes_; }

 private:
  MappedFile file_;
  std::int64_t n_tokens_ = 0;
  std::int64_t token_bytes_ = 0;
};

}  // namespace switchyard::data
