// Tokens equal to those of Hugging Face's `tokenizers`, over the directories that tools/check_tokenizer.py
// writes: tokenizer.json and cases.json.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "json_values.h"
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
    const Json file = test::parsed_file(entry.path() / "cases.json");
    const Json::Array& cases = file["cases"].array();
    ASSERT_GT(cases.size(), 0u);
    for (const Json& one : cases) {
      const std::string& text = one["text"].text();
      const auto expected = test::numbers<std::int32_t>(one["ids"]),
                 plain = test::numbers<std::int32_t>(one["ids_without_special"]);
      EXPECT_EQ(tokenizer->encode(text, true), expected) << text;
      EXPECT_EQ(tokenizer->encode(text, false), plain) << text;
      if (one.contains("bytes_back")) {
        std::string back;
        const auto stream = tokenizer->text_stream();
        for (const std::int32_t token : plain) back += stream->push(token);
        back += stream->finish();
        EXPECT_EQ(back, one["bytes_back"].text());
      }
    }
    ++styles;
  }
  EXPECT_GE(styles, 1);
}

}  // namespace
}  // namespace switchyard::tokenizer
