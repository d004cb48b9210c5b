// Tokens equal to those of Hugging Face's `tokenizers`, over the directories that tools/check_tokenizer.py
// writes: tokenizer.json and cases.json.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "tokenizer/tokenizer.h"

namespace switchyard::tokenizer {
namespace {

std::filesystem::path directory() {
  const char* elsewhere = std::getenv("SWITCHYARD_TOKENIZERS");
  return elsewhere ? elsewhere : SWITCHYARD_TOKENIZER_DIR;
}

TEST(TokenizerGolden, TokensAndTextsAreEqual) {
  int styles = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directory())) {
    if (!std::filesystem::exists(entry.path() / "cases.json")) continue;
    SCOPED_TRACE(entry.path().filename().string());
    const auto tokenizer = load_hugging_face(entry.path() / "tokenizer.json");
    std::ifstream file(entry.path() / "cases.json");
    const nlohmann::json cases = nlohmann::json::parse(file).at("cases");
    ASSERT_GT(cases.size(), 0u);
    for (const nlohmann::json& one : cases) {
      const std::string text = one.at("text");
      const std::vector<std::int32_t> expected = one.at("ids"), plain = one.at("ids_without_special");
      EXPECT_EQ(tokenizer->encode(text, true), expected) << text;
      EXPECT_EQ(tokenizer->encode(text, false), plain) << text;
      if (one.contains("bytes_back")) {
        std::string back;
        const auto stream = tokenizer->text_stream();
        for (const std::int32_t token : plain) back += stream->push(token);
        back += stream->finish();
        EXPECT_EQ(back, one.at("bytes_back").get<std::string>());
      }
    }
    ++styles;
  }
  EXPECT_GE(styles, 1);
}

}  // namespace
}  // namespace switchyard::tokenizer
