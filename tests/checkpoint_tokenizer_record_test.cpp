#include "checkpoint/tokenizer_record.h"

#include <gtest/gtest.h>

#include "run_samples.h"

namespace switchyard::checkpoint {
namespace {

using namespace test;

constexpr std::int64_t kVocabSize = 320;

TEST(FindTokenizer, KnowsNothingOfADirectoryThatSaysNothing) {
  const TempDir dir;
  const ModelTokenizer found = find_tokenizer(dir.path(), "", kVocabSize);
  EXPECT_EQ(found.tokenizer, nullptr);
  EXPECT_FALSE(found.begin_token);
  EXPECT_TRUE(found.end_tokens.empty());
}

TEST(FindTokenizer, TheRecordNamesTheTokensAroundAText) {
  const TempDir dir;
  write_bytes(dir / kTokenizerMeta, R"({"tokenizer": "bytes", "eot_token": 256})");
  const ModelTokenizer one = find_tokenizer(dir.path(), "", kVocabSize);
  ASSERT_NE(one.tokenizer, nullptr);
  EXPECT_EQ(one.tokenizer->vocab_size(), 257);
  EXPECT_EQ(one.begin_token, 256);
  EXPECT_EQ(one.end_tokens, std::vector<std::int32_t>{256});
  write_bytes(dir / kTokenizerMeta, R"({"tokenizer": "bytes", "eot_token": 256, "begin_token": 7})");
  const ModelTokenizer two = find_tokenizer(dir.path(), "", kVocabSize);
  EXPECT_EQ(two.begin_token, 7);
  EXPECT_EQ(two.end_tokens, std::vector<std::int32_t>{256});
}

TEST(FindTokenizer, TheFirstFileThatNamesEndTokensDecides) {
  const TempDir dir;
  EXPECT_EQ(find_tokenizer(dir.path(), "bytes", kVocabSize).end_tokens, std::vector<std::int32_t>{256});
  write_bytes(dir / kTokenizerMeta, R"({"tokenizer": "bytes", "eot_token": 5})");
  EXPECT_EQ(find_tokenizer(dir.path(), "", kVocabSize).end_tokens, std::vector<std::int32_t>{5});
  write_bytes(dir / "config.json", R"({"eos_token_id": 6})");
  EXPECT_EQ(find_tokenizer(dir.path(), "", kVocabSize).end_tokens, std::vector<std::int32_t>{6});
  write_bytes(dir / "generation_config.json", R"({"eos_token_id": null})");
  EXPECT_EQ(find_tokenizer(dir.path(), "", kVocabSize).end_tokens, std::vector<std::int32_t>{6});
  write_bytes(dir / "generation_config.json", R"({"eos_token_id": [7, 8]})");
  EXPECT_EQ(find_tokenizer(dir.path(), "", kVocabSize).end_tokens, (std::vector<std::int32_t>{7, 8}));
}

TEST(FindTokenizer, WhatIsBeyondTheVocabularyIsRefused) {
  const TempDir dir;
  const auto refusal = [&](const char* asked, std::int64_t vocab_size) {
    return message_of<InputError>([&] { find_tokenizer(dir.path(), asked, vocab_size); });
  };
  EXPECT_CONTAINS(refusal("bytes", 256), "it has tokens up to 256, the model's vocabulary is 256");
  for (const char* token : {"320", "-1", "1.5", "\"end\"", "18446744073709551615", "1e30"}) {
    write_bytes(dir / "config.json", std::string(R"({"eos_token_id": )") + token + "}");
    EXPECT_CONTAINS(refusal("", kVocabSize), "is not a token of the model's vocabulary of 320") << token;
  }
  write_bytes(dir / "config.json", "[]");
  EXPECT_CONTAINS(refusal("", kVocabSize), "is not a JSON object");
}

TEST(VocabSizeOf, RoundsTheLargestUpToWholeTiles) {
  const TempDir dir;
  for (const auto& [name, size] : {std::pair("a", "257"), std::pair("b", "100")}) {
    std::filesystem::create_directory(dir / name);
    write_bytes(dir / name / "train_000000.bin", "");
    write_bytes(dir / name / "meta.json", std::string(R"({"vocab_size": )") + size + "}");
  }
  const auto entry = [&](const char* name) { return config::DataEntry{(dir / name).string(), "data", {}}; };
  EXPECT_EQ(vocab_size_of({entry("a"), entry("b")}), 320);
  EXPECT_EQ(vocab_size_of({entry("b")}), 128);
  std::filesystem::remove(dir / "b" / "meta.json");
  EXPECT_EQ(vocab_size_of({entry("b")}), std::nullopt);
}

}  // namespace
}  // namespace switchyard::checkpoint
