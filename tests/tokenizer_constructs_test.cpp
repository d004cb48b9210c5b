// One construct of a tokenizer.json at a time, as tools/check_tokenizer.py writes them: what can be read gives
// the tokens of Hugging Face's `tokenizers`, what cannot is refused by name.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>

#include "core/error.h"
#include "core/file.h"
#include "json_values.h"
#include "tokenizer/tokenizer.h"

namespace switchyard::tokenizer {
namespace {

namespace fs = std::filesystem;

const Json& constructs() {
  static const Json all = test::parsed_file(fs::path(SWITCHYARD_TOKENIZER_DIR) / "constructs.json");
  return all;
}

// As a JSON merge patch (RFC 7386): members of objects replace, null removes.
void merge_patch(Json& target, const Json& patch) {
  if (!patch.is_object()) {
    target = patch;
    return;
  }
  if (!target.is_object()) target = Json(Json::Object{});
  for (const auto& [key, value] : patch.object()) {
    if (value.is_null()) {
      test::erase(target, key);
    } else {
      merge_patch(target[key], value);
    }
  }
}

std::unique_ptr<Tokenizer> with_change(const Json& change) {
  Json file = constructs()["base"];
  merge_patch(file, change);
  return parse_hugging_face(to_line(file), "changed");
}

// Null where the library fails on the text.
Json tokens_of(const Tokenizer& tokenizer, const std::string& text, bool with_special) {
  try {
    return Json::list(tokenizer.encode(text, with_special));
  } catch (const InputError&) {
    return {};
  }
}

TEST(TokenizerConstructs, TokensAreEqual) {
  const Json& texts = constructs()["texts"];
  ASSERT_GE(texts.size(), 30u);
  ASSERT_GE(constructs()["cases"].size(), 150u);
  for (const Json& one : constructs()["cases"].array()) {
    SCOPED_TRACE(one["name"].text());
    if (one.contains("refused")) {
      EXPECT_THROW(with_change(one["change"]), InputError);
      continue;
    }
    std::unique_ptr<Tokenizer> tokenizer;
    ASSERT_NO_THROW(tokenizer = with_change(one["change"]));
    const Json& framed = one.contains("with_special") ? one["with_special"] : one["tokens"];
    for (std::size_t i = 0; i < texts.size(); ++i) {
      const std::string& text = texts[i].text();
      EXPECT_EQ(tokens_of(*tokenizer, text, false), one["tokens"][i]) << text;
      EXPECT_EQ(tokens_of(*tokenizer, text, true), framed[i]) << text;
    }
  }
}

TEST(TokenizerConstructs, TextsAreEqual) {
  for (const Json& one : constructs()["decoding"].array()) {
    SCOPED_TRACE(one["name"].text());
    const auto tokenizer = with_change(Json::Object{{"decoder", one["decoder"]}});
    for (std::size_t i = 0; i < one["tokens"].size(); ++i) {
      const auto stream = tokenizer->text_stream();
      std::string text;
      for (const auto token : test::numbers<std::int32_t>(one["tokens"][i])) text += stream->push(token);
      text += stream->finish();
      EXPECT_EQ(text, one["texts"][i].text()) << to_line(one["tokens"][i]);
    }
  }
}

std::vector<fs::path> files_of(const char* folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(fs::path(SWITCHYARD_TOKENIZER_DIR) / folder))
    files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

TEST(TokenizerConstructs, EachSupportedPartIsRead) {
  const std::vector<fs::path> files = files_of("supported");
  EXPECT_GE(files.size(), 30u);
  for (const fs::path& file : files) EXPECT_NO_THROW(load_hugging_face(file)) << file;
}

// A file's name begins with the JSON path that has to be named.
TEST(TokenizerConstructs, EachOtherPartIsRefusedByName) {
  const std::vector<fs::path> files = files_of("refused");
  EXPECT_GE(files.size(), 20u);
  for (const fs::path& file : files) {
    const std::string name = file.stem().string();
    try {
      load_hugging_face(file);
      ADD_FAILURE() << file << " was read";
    } catch (const InputError& error) {
      EXPECT_NE(std::string(error.what()).find(name.substr(0, name.find('='))), std::string::npos)
          << file << ": " << error.what();
    }
  }
}

TEST(TokenizerConstructs, WhatStandsInPlaceOfATokenizerIsNamed) {
  const auto refusal = [](const std::string& text) -> std::string {
    try {
      parse_hugging_face(text, "t.json");
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(refusal("version https://git-lfs.github.com/spec/v1\n").find("t.json: is a Git LFS pointer"),
            std::string::npos);
  EXPECT_NE(refusal("<!DOCTYPE html>").find("is a web page"), std::string::npos);
  EXPECT_NE(refusal("[]").find("is not a JSON object"), std::string::npos);
}

TEST(TokenizerConstructs, SpecialTokensCanBeText) {
  const auto tokenizer = with_change(test::parsed(R"({"added_tokens": [
      {"id": 776, "content": "<s>", "special": true}, {"id": 777, "content": "<t>", "special": false}]})"));
  EXPECT_EQ(tokenizer->encode("<s>", false).size(), 1u);
  EXPECT_GT(tokenizer->encode("<s>", false, true).size(), 1u);
  EXPECT_EQ(tokenizer->encode("<t>", false, true), tokenizer->encode("<t>", false));
}

TEST(TokenizerConstructs, BytesThatAreNoTextAreNamed) {
  try {
    with_change(Json(Json::Object{}))->encode("ab\xE2\x82", false);
    FAIL();
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("byte 2 (0xE2)"), std::string::npos) << error.what();
  }
}

// The search is given up after as many steps as in the library, and that is no "nothing found".
TEST(TokenizerConstructs, AnExpressionThatTakesTooLongIsAnError) {
  const auto tokenizer = with_change(test::parsed(R"({"pre_tokenizer": {
      "type": "Split", "pattern": {"Regex": "(a+a+)+$"}, "behavior": "Isolated", "invert": false}})"));
  EXPECT_NO_THROW(tokenizer->encode("aaaa", false));
  try {
    tokenizer->encode(std::string(40, 'a') + "!", false);
    FAIL();
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("pre_tokenizer.pattern"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace switchyard::tokenizer
