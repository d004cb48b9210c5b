// Token data as the trainer and the evaluator see it: streams of tokens, and which window of which stream is
// the n-th training sample.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/shard.h"

namespace switchyard::data {

// The shards behind one path (a file, or a directory: all its *.bin) or glob, sorted by name. Throws InputError
// where nothing matches.
std::vector<std::filesystem::path> expand_shards(const std::string& path_or_glob);

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
  // Reads everything once for the check above. Returns the CRC-32 of each shard's tokens.
  std::vector<std::uint32_t> verify() const;

 private:
  std::vector<Shard> shards_;
  std::vector<std::int64_t> starts_;  // of each shard in the stream
  std::int64_t size_ = 0;
  std::int64_t vocab_size_;
};

// What meta.json beside the shards states: the token behind a text, and the one that each document begins with
// (where it is not stated, the end-of-text token). None where no such file does. Throws InputError where they
// disagree.
struct SpecialTokens {
  std::optional<std::int64_t> eot, begin;
};
SpecialTokens special_tokens_beside(const std::vector<std::filesystem::path>& shards);

// The largest vocab_size that a meta.json beside the shards states; none where no such file does. Throws
// InputError where it is not a whole number.
std::optional<std::int64_t> vocab_size_beside(const std::vector<std::filesystem::path>& shards);

// How much text a stream's tokens stand for.
struct TextSize {
  double bytes = 0;          // in UTF-8
  bool is_estimate = false;  // by the bytes per token of a split of which the tokens are a part
};
// By the counts of the splits in meta.json beside the shards, where NAME_NNNNNN.bin is of split NAME: exact
// where the shards of each split have all its tokens. None where a shard's split is not stated. Throws
// InputError where the counts are malformed.
std::optional<TextSize> text_size_beside(const std::vector<Shard>& shards);

// Order of the training samples: a pure function of (seed, global sample index). Stream d is cut into windows
// of seq_len inputs; window w has inputs [w*seq_len, (w+1)*seq_len) and targets one token on. Each pass over a
// stream (epoch) visits every window once, in an order of its own. Domains are interleaved in blocks that hold
// each domain in its exact share of kMixBlock samples.
class Sampler {
 public:
  static constexpr std::int64_t kMixBlock = 4096;

  struct Domain {
    std::string name;
    std::int64_t n_tokens;
    std::optional<double> weight;  // default: in proportion to n_tokens
  };
  struct Sample {
    std::size_t domain;
    std::int64_t window;
    std::int64_t epoch;
  };

  // Throws InputError: a domain shorter than seq_len + 1 tokens, or with a share below 1/kMixBlock.
  Sampler(const std::vector<Domain>& domains, std::int64_t seq_len, std::uint64_t seed);
  Sample at(std::int64_t global_index) const;
  const std::vector<std::int64_t>& samples_per_block() const {
    return per_block_;
  }  // one a domain; sum: kMixBlock

 private:
  std::vector<std::int64_t> windows_;
  std::vector<std::int64_t> per_block_;
  std::vector<std::int64_t> block_start_;
  std::uint64_t seed_;
};

}  // namespace switchyard::data
