// Token shards in llm.c's format: a header of 256 int32 (magic, version, token count, zeros), then the tokens.
//   magic 20240520, version 1: uint16 tokens;  magic 20240801, version 7: uint32 tokens.   Little-endian.
// And a stream of tokens, which is several shards one after the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "core/file.h"

namespace switchyard::data {

constexpr std::int64_t kShardHeaderBytes = 1024;

// Where the tokens of a shard lie.
struct ShardLayout {
  std::int64_t n_tokens = 0;
  std::int64_t token_bytes = 0;  // 2 or 4
};

// Checks a whole shard's magic, version and that its size is the header's token count. Throws InputError naming
// `name`.
ShardLayout parse_shard(std::span<const std::byte> bytes, const std::string& name);
// tokens [first, first + out.size()) of a shard's bytes -> out; within n_tokens.
void read_tokens(std::span<const std::byte> bytes, const ShardLayout& layout, std::int64_t first,
                 std::span<std::int32_t> out);

class Shard {
 public:
  // Maps the file and checks magic, version and that its size is the header's token count. Throws InputError.
  explicit Shard(std::filesystem::path path);
  std::int64_t size() const { return layout_.n_tokens; }            // tokens
  std::int64_t token_bytes() const { return layout_.token_bytes; }  // 2 or 4
  const std::filesystem::path& path() const { return file_.path(); }
  std::span<const std::byte> tokens() const {  // as the file has them
    return file_.bytes().subspan(static_cast<std::size_t>(kShardHeaderBytes));
  }
  // tokens [first, first + out.size()) -> out; within size(). A uint32 above INT32_MAX reads as negative.
  void read(std::int64_t first, std::span<std::int32_t> out) const {
    read_tokens(file_.bytes(), layout_, first, out);
  }
  std::int64_t byte_offset(std::int64_t token) const { return kShardHeaderBytes + token * layout_.token_bytes; }

 private:
  MappedFile file_;
  ShardLayout layout_;
};

// Shards read as one sequence of tokens.
class TokenStream {
 public:
  // Opens all shards and checks them (shard.h); `vocab_size` bounds the tokens.
  TokenStream(const std::vector<std::filesystem::path>& paths, std::int64_t vocab_size);
  std::int64_t size() const { return size_; }
  const std::vector<Shard>& shards() const { return shards_; }
  // tokens [first, first + out.size()) -> out. Throws InputError that names a token >= vocab_size, its file and
  // byte offset.
  void read(std::int64_t first, std::span<std::int32_t> out) const;
  // Reads all of a shard once for the check above. Returns the CRC-32 of its tokens.
  std::uint32_t verify(std::size_t shard) const;

 private:
  std::vector<Shard> shards_;
  std::vector<std::int64_t> starts_;  // of each shard in the stream
  std::int64_t size_ = 0;
  std::int64_t vocab_size_;
};

}  // namespace switchyard::data
