// Byte-pair encoding (Sennrich et al., arXiv 1508.07909) of one word, as Hugging Face's `tokenizers` does it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace switchyard::tokenizer {

class Bpe {
 public:
  struct Options {
    bool byte_fallback = false;          // a character that is no token becomes its bytes' tokens <0xNN>
    bool fuse_unknown = false;           // neighbouring unknown characters are one unknown token
    bool ignore_merges = false;          // a word that is a token is that token, whatever the merges are
    std::optional<std::string> unknown;  // without: an unknown character is left out
  };
  Bpe(std::unordered_map<std::string, std::int32_t> vocab, Options options);
  // Merges in order of rank. False where one of the three is no token.
  bool add_merge(const std::string& left, const std::string& right);

  const std::unordered_map<std::string, std::int32_t>& vocab() const { return vocab_; }
  void encode(std::string_view word, std::vector<std::int32_t>& out) const;

 private:
  struct Merge {
    std::int32_t rank, token;
  };
  std::vector<std::int32_t> symbols_of(std::string_view word) const;
  void merge(std::vector<std::int32_t>& symbols) const;
  static std::uint64_t key(std::int32_t left, std::int32_t right) {
    return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
  }

  std::unordered_map<std::string, std::int32_t> vocab_;
  std::unordered_map<std::uint64_t, Merge> merges_;
  Options options_;
  mutable std::unordered_map<std::string, std::vector<std::int32_t>> cache_;  // of short words
};

}  // namespace switchyard::tokenizer
