#include "data/shard.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <utility>

#include "core/error.h"
#include "core/file.h"
#include "core/progress.h"
#include "data/shard_paths.h"

namespace switchyard::data {

namespace {

static_assert(std::endian::native == std::endian::little,
              "shards are read in place, as little-endian integers");

struct Format {
  std::int32_t magic;
  std::int32_t version;
  std::int64_t token_bytes;
};
constexpr std::array<Format, 2> kFormats = {{{20240520, 1, 2}, {20240801, 7, 4}}};

constexpr const char* kPrepareHint = "make shards with tools/prepare_data.py";

bool starts_with(std::span<const std::byte> bytes, std::string_view prefix) {
  return bytes.size() >= prefix.size() && std::memcmp(bytes.data(), prefix.data(), prefix.size()) == 0;
}

// What a file that is no shard looks like, as a clause to append to a message; empty where it cannot be told.
std::string looks_like(std::span<const std::byte> bytes) {
  if (const std::string other = stand_in(bytes); !other.empty()) return "; it " + other;
  if (starts_with(bytes, "PAR1")) return "; it looks like a Parquet file";
  // safetensors: the length of a JSON header in 8 bytes, then the header
  if (bytes.size() > 8 && bytes[8] == std::byte{'{'} && bytes[7] == std::byte{0})
    return "; it looks like a safetensors file";
  const auto head = bytes.first(std::min<std::size_t>(bytes.size(), 256));
  const bool text = std::none_of(head.begin(), head.end(), [](std::byte b) {
    const auto c = static_cast<unsigned char>(b);
    return (c < ' ' && c != '\n' && c != '\r' && c != '\t') || c == 0x7f;
  });
  return text && !head.empty() ? "; it looks like text" : "";
}

}  // namespace

ShardLayout parse_shard(std::span<const std::byte> bytes, const std::string& name) {
  if (bytes.empty()) throw_input("{}: the file is empty, not a token shard; {}", name, kPrepareHint);
  if (bytes.size() < static_cast<std::size_t>(kShardHeaderBytes))
    throw_input("{}: {} bytes, too small for a token shard's header of {}{}; {}", name, bytes.size(),
                kShardHeaderBytes, looks_like(bytes), kPrepareHint);

  std::array<std::int32_t, 3> header;
  std::memcpy(header.data(), bytes.data(), sizeof(header));
  const std::int32_t magic = header[0], version = header[1], count = header[2];
  const auto* format =
      std::find_if(kFormats.begin(), kFormats.end(), [&](const Format& f) { return f.magic == magic; });
  if (format == kFormats.end())
    throw_input("{}: not a token shard: magic {} at byte 0, known are {} (uint16) and {} (uint32){}; {}", name,
                magic, kFormats[0].magic, kFormats[1].magic, looks_like(bytes), kPrepareHint);
  if (version != format->version)
    throw_input("{}: token shard of version {} at byte 4; magic {} is known in version {}; {}", name, version,
                magic, format->version, kPrepareHint);
  if (count <= 0) throw_input("{}: token count {} at byte 8; a shard holds at least one token", name, count);

  const ShardLayout layout{count, format->token_bytes};
  const std::int64_t expected = kShardHeaderBytes + layout.n_tokens * layout.token_bytes;
  const auto found = static_cast<std::int64_t>(bytes.size());
  if (found != expected)
    throw_input("{}: {}: its header says {} tokens, hence {} bytes, the file has {}; copy or make it again",
                name, found < expected ? "truncated" : "too long", layout.n_tokens, expected, found);
  return layout;
}

void read_tokens(std::span<const std::byte> bytes, const ShardLayout& layout, std::int64_t first,
                 std::span<std::int32_t> out) {
  const auto count = static_cast<std::int64_t>(out.size());
  SY_CHECK(first >= 0 && first + count <= layout.n_tokens, "tokens [{}, {}) of {}", first, first + count,
           layout.n_tokens);
  if (count == 0) return;
  const std::byte* from = bytes.data() + kShardHeaderBytes + first * layout.token_bytes;
  if (layout.token_bytes == 4) {
    std::memcpy(out.data(), from, out.size_bytes());
  } else {
    const auto* tokens = reinterpret_cast<const std::uint16_t*>(from);
    std::copy(tokens, tokens + count, out.begin());
  }
}

Shard::Shard(std::filesystem::path path)
    : file_(std::move(path)), layout_(parse_shard(file_.bytes(), file_.path().string())) {}

namespace {

// A negative token (a uint32 above INT32_MAX) is the largest when seen without its sign.
std::uint32_t largest(std::span<const std::int32_t> tokens) {
  std::uint32_t top = 0;
  for (const std::int32_t token : tokens) top = std::max(top, static_cast<std::uint32_t>(token));
  return top;
}

// Reads tokens of one shard and throws where one is not in the vocabulary.
void read_checked(const Shard& shard, std::int64_t first, std::span<std::int32_t> out,
                  std::int64_t vocab_size) {
  shard.read(first, out);
  if (largest(out) < vocab_size) return;
  const auto bad = std::find_if(out.begin(), out.end(), [&](std::int32_t token) {
    return static_cast<std::uint32_t>(token) >= vocab_size;
  });
  const auto stated = vocab_size_beside({shard.path()});
  throw_input(
      "{}: token {} at byte {} is not in the vocabulary of {}{}; check model.vocab_size and the tokenizer of "
      "these shards",
      shard.path().string(), static_cast<std::uint32_t>(*bad), shard.byte_offset(first + (bad - out.begin())),
      vocab_size, stated ? fmt::format(" (meta.json: vocab_size {})", *stated) : "");
}

}  // namespace

TokenStream::TokenStream(const std::vector<std::filesystem::path>& paths, std::int64_t vocab_size)
    : vocab_size_(vocab_size) {
  SY_CHECK(vocab_size > 0 && vocab_size <= std::numeric_limits<std::int32_t>::max(), "vocabulary of {}",
           vocab_size);
  SY_CHECK(!paths.empty(), "a token stream of no shards");
  shards_.reserve(paths.size());
  for (const auto& path : paths) {
    shards_.emplace_back(path);
    starts_.push_back(size_);
    size_ += shards_.back().size();
  }
}

void TokenStream::read(std::int64_t first, std::span<std::int32_t> out) const {
  const auto count = static_cast<std::int64_t>(out.size());
  SY_CHECK(first >= 0 && first + count <= size_, "tokens [{}, {}) of {}", first, first + count, size_);
  if (count == 0) return;
  auto s =
      static_cast<std::size_t>(std::upper_bound(starts_.begin(), starts_.end(), first) - starts_.begin()) - 1;
  for (std::int64_t within = first - starts_[s]; !out.empty(); ++s, within = 0) {
    const auto piece = out.first(
        static_cast<std::size_t>(std::min(static_cast<std::int64_t>(out.size()), shards_[s].size() - within)));
    read_checked(shards_[s], within, piece, vocab_size_);
    out = out.subspan(piece.size());
  }
}

std::uint32_t TokenStream::verify(std::size_t number) const {
  constexpr std::int64_t kPiece = 8192;  // tokens; stays in the first-level cache
  const Shard& shard = shards_[number];
  mark("check of shard", static_cast<std::int64_t>(number));
  const std::uint32_t crc = crc32(shard.tokens());
  if (shard.token_bytes() == 2 && vocab_size_ > std::numeric_limits<std::uint16_t>::max()) return crc;
  const std::int64_t pieces = (shard.size() + kPiece - 1) / kPiece;
  std::int64_t first_bad = pieces;
#pragma omp parallel reduction(min : first_bad)
  {
    std::array<std::int32_t, kPiece> buffer;
#pragma omp for schedule(static)
    for (std::int64_t i = 0; i < pieces; ++i) {
      const std::span<std::int32_t> tokens(
          buffer.data(), static_cast<std::size_t>(std::min(kPiece, shard.size() - i * kPiece)));
      shard.read(i * kPiece, tokens);
      if (largest(tokens) >= vocab_size_) first_bad = std::min(first_bad, i);
    }
  }
  if (first_bad == pieces) return crc;
  std::array<std::int32_t, kPiece> buffer;
  read_checked(shard, first_bad * kPiece,
               {buffer.data(), static_cast<std::size_t>(std::min(kPiece, shard.size() - first_bad * kPiece))},
               vocab_size_);
  return crc;
}

}  // namespace switchyard::data
