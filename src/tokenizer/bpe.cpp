#include "tokenizer/bpe.h"

#include <queue>
#include <utility>

#include "core/error.h"
#include "core/json.h"
#include "core/utf8.h"

namespace switchyard::tokenizer {

namespace {
constexpr std::size_t kCachedBytes = 64, kCachedWords = 1 << 18;

std::uint64_t packed(std::string_view character) {
  std::uint64_t bytes = 0;
  for (const char c : character) bytes = bytes << 8 | static_cast<unsigned char>(c);
  return bytes;
}

// Two characters of at most four bytes each.
std::uint64_t meeting(std::string_view left, std::string_view right) {
  return packed(left) << 32 | packed(right);
}

std::string_view last_character(std::string_view text) {
  std::size_t begin = text.size() - 1;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
  return text.substr(begin);
}

bool are_distinct(const TextMap<std::int32_t>& vocab) {
  std::unordered_set<std::int32_t> ids;
  for (const auto& [text, id] : vocab) ids.insert(id);
  return ids.size() == vocab.size();
}
}  // namespace

Bpe::Bpe(TextMap<std::int32_t> vocab, Options options)
    : vocab_(std::move(vocab)),
      options_(std::move(options)),
      cuts_(!options_.ignore_merges && options_.continuing_prefix.empty() && options_.word_suffix.empty() &&
            are_distinct(vocab_)) {}

bool Bpe::add_merge(const std::string& left, const std::string& right) {
  if (right.size() < options_.continuing_prefix.size()) return false;
  const auto a = vocab_.find(left), b = vocab_.find(right),
             whole = vocab_.find(left + right.substr(options_.continuing_prefix.size()));
  if (a == vocab_.end() || b == vocab_.end() || whole == vocab_.end()) return false;
  if (!left.empty() && !right.empty())
    joined_.insert(meeting(last_character(left), std::string_view(right).substr(0, character_size(right, 0))));
  merges_.insert_or_assign(key(a->second, b->second), Merge{next_rank_++, whole->second});
  return true;
}

// Both are tokens: then each is a symbol of its own to begin with (nothing unknown waits between them), a
// symbol that grows to the border ends or begins with one of them, and none of those is merged with the other.
bool Bpe::may_be_cut(std::string_view left, std::string_view right) const {
  const std::uint64_t characters = meeting(left, right);
  const auto [known, is_new] = cut_.try_emplace(characters, false);
  if (is_new) known->second = !joined_.contains(characters) && vocab_.contains(left) && vocab_.contains(right);
  return known->second;
}

void Bpe::encode(std::string_view word, std::vector<std::int32_t>& out) const {
  if (!cuts_ || word.size() <= kCachedBytes) return encode_uncut(word, out);
  std::size_t begin = 0, at = character_size(word, 0);
  std::string_view left = word.substr(0, at);
  while (at < word.size()) {
    const std::string_view right = word.substr(at, character_size(word, at));
    if (may_be_cut(left, right)) {
      encode_uncut(word.substr(begin, at - begin), out);
      begin = at;
    }
    left = right;
    at += right.size();
  }
  encode_uncut(word.substr(begin), out);
}

void Bpe::encode_uncut(std::string_view word, std::vector<std::int32_t>& out) const {
  if (word.empty()) return;
  if (const auto known = cache_.find(word); known != cache_.end()) {
    out.insert(out.end(), known->second.begin(), known->second.end());
    return;
  }
  std::vector<std::int32_t> symbols;
  const auto whole = options_.ignore_merges ? vocab_.find(word) : vocab_.end();
  if (whole != vocab_.end()) {
    symbols = {whole->second};
  } else {
    symbols = symbols_of(word);
    merge(symbols);
  }
  out.insert(out.end(), symbols.begin(), symbols.end());
  if (word.size() <= kCachedBytes && cache_.size() < kCachedWords) cache_.emplace(word, std::move(symbols));
}

std::vector<std::int32_t> Bpe::symbols_of(std::string_view word) const {
  std::vector<std::int32_t> symbols;
  constexpr std::int32_t kNone = -1;
  std::int32_t unknown = kNone;  // one that waits for what follows; bytes do not end the wait
  std::string affixed;
  for (std::size_t at = 0; at < word.size();) {
    const std::size_t size = character_size(word, at);
    std::string_view character = word.substr(at, size);
    const bool first = at == 0, last = at + size == word.size();
    at += size;
    if ((!first && !options_.continuing_prefix.empty()) || (last && !options_.word_suffix.empty())) {
      affixed = first ? "" : options_.continuing_prefix;
      affixed += character;
      if (last) affixed += options_.word_suffix;
      character = affixed;
    }
    if (const auto found = vocab_.find(character); found != vocab_.end()) {
      if (unknown != kNone) symbols.push_back(std::exchange(unknown, kNone));
      symbols.push_back(found->second);
      continue;
    }
    if (options_.byte_fallback && add_bytes(character, symbols)) continue;
    if (!options_.unknown) continue;
    if (unknown != kNone && options_.fuse_unknown) continue;
    if (unknown != kNone) symbols.push_back(unknown);
    const auto found = vocab_.find(*options_.unknown);
    if (found == vocab_.end())
      throw_input("the text has {}, which is no token, and model.unk_token {} is none either",
                  in_quotes(character), in_quotes(*options_.unknown));
    unknown = found->second;
  }
  if (unknown != kNone) symbols.push_back(unknown);
  return symbols;
}

bool Bpe::add_bytes(std::string_view character, std::vector<std::int32_t>& symbols) const {
  std::vector<std::int32_t> bytes;
  for (const char c : character) {
    const auto found = vocab_.find(fmt::format("<0x{:02X}>", static_cast<unsigned char>(c)));
    if (found == vocab_.end()) return false;
    bytes.push_back(found->second);
  }
  symbols.insert(symbols.end(), bytes.begin(), bytes.end());
  return true;
}

// The pair of the lowest rank first, the leftmost of equal ones; a heap, since a word may be a whole text.
void Bpe::merge(std::vector<std::int32_t>& symbols) const {
  struct Pair {
    std::int32_t rank;
    std::int32_t left;  // index of its left symbol
    std::int32_t left_token, right_token, token;
    bool operator>(const Pair& other) const {
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };
  const auto n = static_cast<std::int32_t>(symbols.size());
  std::vector<std::int32_t> next(symbols.size()), before(symbols.size());
  std::priority_queue<Pair, std::vector<Pair>, std::greater<>> pairs;
  const auto at = [](std::int32_t i) { return static_cast<std::size_t>(i); };
  const auto consider = [&](std::int32_t left) {
    if (left < 0 || next[at(left)] >= n) return;
    const std::int32_t a = symbols[at(left)], b = symbols[at(next[at(left)])];
    if (const auto found = merges_.find(key(a, b)); found != merges_.end())
      pairs.push({found->second.rank, left, a, b, found->second.token});
  };
  for (std::int32_t i = 0; i < n; ++i) next[at(i)] = i + 1, before[at(i)] = i - 1;
  for (std::int32_t i = 0; i < n; ++i) consider(i);
  while (!pairs.empty()) {
    const Pair pair = pairs.top();
    pairs.pop();
    const std::int32_t right = next[at(pair.left)];
    // Overtaken: one of the two has been merged with another since.
    if (symbols[at(pair.left)] != pair.left_token || right >= n || symbols[at(right)] != pair.right_token)
      continue;
    symbols[at(pair.left)] = pair.token;
    symbols[at(right)] = -1;
    next[at(pair.left)] = next[at(right)];
    if (next[at(right)] < n) before[at(next[at(right)])] = pair.left;
    consider(before[at(pair.left)]);
    consider(pair.left);
  }
  std::erase(symbols, -1);
}

}  // namespace switchyard::tokenizer
