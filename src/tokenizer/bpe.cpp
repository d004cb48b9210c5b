#include "tokenizer/bpe.h"

#include <queue>
#include <utility>

#include "core/error.h"
#include "tokenizer/utf8.h"

namespace switchyard::tokenizer {

namespace {
constexpr std::size_t kCachedBytes = 64, kCachedWords = 1 << 18;
}

Bpe::Bpe(TextMap<std::int32_t> vocab, Options options)
    : vocab_(std::move(vocab)), options_(std::move(options)) {}

bool Bpe::add_merge(const std::string& left, const std::string& right) {
  if (right.size() < options_.continuing_prefix.size()) return false;
  const auto a = vocab_.find(left), b = vocab_.find(right),
             whole = vocab_.find(left + right.substr(options_.continuing_prefix.size()));
  if (a == vocab_.end() || b == vocab_.end() || whole == vocab_.end()) return false;
  merges_.insert_or_assign(key(a->second, b->second), Merge{next_rank_++, whole->second});
  return true;
}

void Bpe::encode(std::string_view word, std::vector<std::int32_t>& out) const {
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
      throw_input("the text has \"{}\", which is no token, and model.unk_token \"{}\" is none either",
                  character, *options_.unknown);
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
