// Byte-pair encoding (Sennrich et al., arXiv 1508.07909) of one word, as Hugging Face's `tokenizers` does it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace switchyard::tokenizer {

struct TextHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};
template <class Value>
using TextMap = std::unordered_map<std::string, Value, TextHash, std::equal_to<>>;  // found by string_view

class Bpe {
 public:
  struct Options {
    bool byte_fallback = false;          // a character that is no token becomes its bytes' tokens <0xNN>
    bool fuse_unknown = false;           // neighbouring unknown characters are one unknown token
    bool ignore_merges = false;          // a word that is a token is that token, whatever the merges are
    std::optional<std::string> unknown;  // without: an unknown character is left out
    std::string continuing_prefix;       // before each character of a word but the first
    std::string word_suffix;             // behind the last character of a word
  };
  Bpe(TextMap<std::int32_t> vocab, Options options);
  // Merges in order of rank; of equal ones the last counts. False where one of the three is no token.
  bool add_merge(const std::string& left, const std::string& right);

  const TextMap<std::int32_t>& vocab() const { return vocab_; }
  std::size_t merges() const { return merges_.size(); }
  // Throws InputError where a character is unknown and the unknown token is no token. A long word is cut first
  // where nothing could ever be merged, which changes no token: a text that is one word, as Mixtral's tokenizer
  // has it, then consists of words that are met again.
  void encode(std::string_view word, std::vector<std::int32_t>& out) const;

 private:
  void encode_uncut(std::string_view word, std::vector<std::int32_t>& out) const;
  bool may_be_cut(std::string_view left, std::string_view right) const;
  struct Merge {
    std::int32_t rank, token;
  };
  std::vector<std::int32_t> symbols_of(std::string_view word) const;
  bool add_bytes(std::string_view character, std::vector<std::int32_t>& symbols) const;
  void merge(std::vector<std::int32_t>& symbols) const;
  static std::uint64_t key(std::int32_t left, std::int32_t right) {
    return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
  }

  TextMap<std::int32_t> vocab_;
  std::unordered_map<std::uint64_t, Merge> merges_;
  std::int32_t next_rank_ = 0;
  Options options_;
  bool cuts_;  // whether symbols are what their characters say, so that a cut can be judged by those
  std::unordered_set<std::uint64_t> joined_;             // the characters that meet where some merge joins
  mutable std::unordered_map<std::uint64_t, bool> cut_;  // of characters that met: may_be_cut, once asked
  mutable TextMap<std::vector<std::int32_t>> cache_;     // of short words
};

}  // namespace switchyard::tokenizer
