// From what a user writes as a data path to the shards behind it, and to what meta.json beside them says.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "data/shard.h"

namespace switchyard::data {

// The shards behind one path (a file, or a directory: all its *.bin) or glob, sorted by name. Throws InputError
// where nothing matches.
std::vector<std::filesystem::path> expand_shards(const std::string& path_or_glob);

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

}  // namespace switchyard::data
