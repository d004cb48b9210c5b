// Long words are cut before they are merged; here against the same merges of the whole word.
#include "tokenizer/bpe.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <utility>
#include <vector>

namespace switchyard::tokenizer {
namespace {

const std::vector<std::string> kCharacters = {"a", "b", "\xC3\xA9", "\xE2\x96\x81", "\xF0\x9F\x98\x80", "?"};

// Characters but the last are tokens, and so is what the merges make of them.
Bpe bpe_of(const std::vector<std::pair<std::string, std::string>>& merges, const Bpe::Options& options) {
  TextMap<std::int32_t> vocab;
  const auto add = [&](const std::string& text) {
    vocab.emplace(text, static_cast<std::int32_t>(vocab.size()));
  };
  for (std::size_t i = 0; i + 1 < kCharacters.size(); ++i) add(kCharacters[i]);
  add("<unk>");
  if (options.byte_fallback) add("<0x3F>");
  for (const auto& [left, right] : merges) add(left + right);
  Bpe bpe(vocab, options);
  for (const auto& [left, right] : merges) bpe.add_merge(left, right);
  return bpe;
}

TEST(Bpe, ALongWordThatIsCutHasTheTokensOfTheWholeOne) {
  std::mt19937 random(7);
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
  std::size_t merged = 0;
  for (int round = 0; round < 200; ++round) {
    std::vector<std::string> pieces(kCharacters.begin(), kCharacters.end() - 1);
    std::vector<std::pair<std::string, std::string>> merges;
    for (std::size_t i = 0; i < 1 + below(8); ++i) {
      merges.emplace_back(pieces[below(pieces.size())], pieces[below(pieces.size())]);
      pieces.push_back(merges.back().first + merges.back().second);
    }
    Bpe::Options options;
    options.byte_fallback = round % 2 == 1;
    options.fuse_unknown = round % 3 == 1;
    options.unknown = "<unk>";
    const Bpe cut = bpe_of(merges, options);
    options.ignore_merges = true;  // looks the whole word up first, so it is never cut; no word here is a token
    const Bpe whole = bpe_of(merges, options);
    std::string word;
    while (word.size() < 300) word += kCharacters[below(kCharacters.size())];
    std::vector<std::int32_t> found, expected;
    cut.encode(word, found);
    whole.encode(word, expected);
    EXPECT_EQ(found, expected) << round;
    for (const std::int32_t token : found)
      merged += token > static_cast<std::int32_t>(kCharacters.size()) ? 1 : 0;
  }
  EXPECT_GT(merged, 1000u);
}

}  // namespace
}  // namespace switchyard::tokenizer
