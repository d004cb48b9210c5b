#include <algorithm>
#include <array>
#include <limits>

#include "core/error.h"
#include "core/file.h"
#include "data/dataset.h"

namespace switchyard::data {

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

std::vector<std::uint32_t> TokenStream::verify() const {
  constexpr std::int64_t kPiece = 8192;  // tokens; stays in the first-level cache
  std::vector<std::uint32_t> crc_of_shard;
  for (const Shard& shard : shards_) {
    crc_of_shard.push_back(crc32(shard.tokens()));
    if (shard.token_bytes() == 2 && vocab_size_ > std::numeric_limits<std::uint16_t>::max()) continue;
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
    if (first_bad == pieces) continue;
    std::array<std::int32_t, kPiece> buffer;
    read_checked(shard, first_bad * kPiece,
                 {buffer.data(), static_cast<std::size_t>(std::min(kPiece, shard.size() - first_bad * kPiece))},
                 vocab_size_);
  }
  return crc_of_shard;
}

}  // namespace switchyard::data
