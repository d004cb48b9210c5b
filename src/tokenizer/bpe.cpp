#include "tokenizer/bpe.h"

#include <queue>

#include "core/error.h"
#include "tokenizer/utf8.h"

namespace switchyard::tokenizer {

namespace {
constexpr std::size_t kCachedBytes = 64, kCachedWords = 1 << 16;
}

Bpe::Bpe(std::unordered_map<std::string, std::int32_t> vocab, Options options)
    : vocab_(std::move(vocab)), options_(std::move(options)) {}

bool Bpe::add_merge(const std::string& left, const std::string& right) {
  const auto a = vocab_.find(left), b = vocab_.find(right), whole = vocab_.find(left + right);
  if (a == vocab_.end() || b == vocab_.end() || whole == vocab_.end()) return false;
  const auto rank = static_cast<std::int32_t>(merges_.size());
  merges_.try_emplace(key(a->second, b->second), Merge{rank, whole->second});
  return true;
}

void Bpe::encode(std::string_view word, std::vector<std::int32_t>& out) const {
  if (word.empty()) return;
  const std::string text(word);
  if (options_.ignore_merges) {
    if (const auto whole = vocab_.find(text); whole != vocab_.end()) return out.push_back(whole->second);
  }
  if (const auto known = cache_.find(text); known != cache_.end()) {
    out.insert(out.end(), known->second.begin(), known->second.end());
    return;
  }
  std::vector<std::int32_t> symbols = symbols_of(word);
  merge(symbols);
  out.insert(out.end(), symbols.begin(), symbols.end());
  if (text.size() <= kCachedBytes && cache_.size() < kCachedWords) cache_.emplace(text, std::move(symbols));
}

std::vector<std::int32_t> Bpe::symbols_of(std::string_view word) const {
  std::vector<std::int32_t> symbols;
  bool unknown_before = false;
  for (std::size_t at = 0; at < word.size();) {
    const std::size_t size = character_size(word, at);
    SY_CHECK(size > 0, "byte {} of a word is no character", at);
    const std::string_view character = word.substr(at, size);
    at += size;
    if (const auto found = vocab_.find(std::string(character)); found != vocab_.end()) {
      symbols.push_back(found->second);
      unknown_before = false;
      continue;
    }
    if (options_.byte_fallback) {
      std::vector<std::int32_t> bytes;
      for (const char c : character) {
        const auto found = vocab_.find(fmt::format("<0x{:02X}>", static_cast<unsigned char>(c)));
        if (found != vocab_.end()) bytes.push_back(found->second);
      }
      if (bytes.size() == size) {
        symbols.insert(symbols.end(), bytes.begin(), bytes.end());
        unknown_before = false;
        continue;
      }
    }
    if (!options_.unknown) continue;
    if (!(options_.fuse_unknown && unknown_before)) symbols.push_back(vocab_.at(*options_.unknown));
    unknown_before = true;
  }
  return symbols;
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
