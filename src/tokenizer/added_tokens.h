// The added tokens of a tokenizer.json: found in a text before anything else cuts it.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "tokenizer/bpe.h"
#include "tokenizer/stages.h"

namespace switchyard::tokenizer {

struct AddedToken {
  std::string content;
  bool single_word = false;  // only where no letter, digit or mark is next to it
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // and behind it
  bool normalized = false;   // its content is normalised, and looked for in the normalised text
  bool special = false;      // stands for no text
};

// Either a piece that is still to be cut, or an added token.
struct Segment {
  Piece piece;
  std::int32_t token = -1;
};

// Finds the longest of some texts at a place.
class Trie {
 public:
  bool add(const std::string& text, std::int32_t value);  // false: it is there already
  // The value of the longest text that begins at `at`, and where it ends; -1: none.
  std::int32_t longest(std::string_view text, std::size_t at, std::size_t& end) const;

 private:
  std::unordered_map<std::uint64_t, std::uint32_t> next_;  // node << 8 | byte: the node behind it
  std::unordered_map<std::uint32_t, std::int32_t> value_;  // of a node where a text ends
  bool begins_[256] = {};
  std::uint32_t nodes_ = 1;
};

class AddedTokens {
 public:
  // A token that the model or an earlier one knows by its content has its number; others are numbered behind
  // the model's. `where` is the list's JSON path; throws InputError where two tokens are the same normalised.
  AddedTokens(const std::vector<AddedToken>& tokens, const Bpe& model, Normalizer normalize,
              const std::string& where);
  // The text as tokens and normalised pieces. `special_as_text`: special tokens are not looked for.
  std::vector<Segment> cut(std::string_view text, bool special_as_text) const;

  const std::unordered_map<std::int32_t, AddedToken>& tokens() const { return by_token_; }
  const TextMap<std::int32_t>& by_content() const { return by_content_; }
  // What a token is written as: normalised, where it is looked for so.
  const std::string& text_of(std::int32_t token) const { return text_.at(token); }
  bool is_special(const std::string& content) const { return special_.contains(content); }

 private:
  void cut_at(const Trie& trie, Piece piece, bool special_as_text, std::vector<Segment>& out) const;

  Normalizer normalize_;
  std::unordered_map<std::int32_t, AddedToken> by_token_;
  std::unordered_map<std::int32_t, std::string> text_;
  TextMap<std::int32_t> by_content_;
  std::unordered_set<std::string> special_;
  Trie raw_, normalized_;  // found in the text as it is, or as it is normalised
};

}  // namespace switchyard::tokenizer
