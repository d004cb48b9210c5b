#include "checkpoint/tokenizer_record.h"

#include <gtest/gtest.h>

#include <map>

#include "json_values.h"
#include "run_samples.h"

namespace switchyard::checkpoint {
namespace {

using namespace test;

std::map<std::string, Json> files_of(const TokenizerRecord& record, const Json& tokenizer = {}) {
  std::map<std::string, Json> files;
  for (const auto& [name, text] : text_files(record, to_line(tokenizer), 64, "tokenizer.json"))
    files[name] = parsed(text);
  return files;
}

TEST(TextFiles, BytesAreABpeWithoutMerges) {
  auto files = files_of({"bytes", 256, 256});
  const Json& tokenizer = files["tokenizer.json"];
  EXPECT_EQ(tokenizer["model"]["merges"], Json(Json::Array{}));
  const Json& vocab = tokenizer["model"]["vocab"];
  EXPECT_EQ(vocab.size(), 257u);
  EXPECT_EQ(vocab["A"], 65);
  EXPECT_EQ(vocab["\u0120"], 32);  // space: the 33rd character from U+0100 on
  EXPECT_EQ(vocab["\u0100"], 0);
  EXPECT_EQ(vocab["\u0143"], 0xAD);  // the last that is not printable in Latin-1
  EXPECT_EQ(vocab["\u00ff"], 255);
  EXPECT_EQ(tokenizer["pre_tokenizer"]["use_regex"], false);
  EXPECT_EQ(tokenizer["added_tokens"][0]["content"], "<|endoftext|>");
  EXPECT_EQ(tokenizer["post_processor"]["special_tokens"]["<|endoftext|>"]["ids"], parsed("[256]"));
  EXPECT_EQ(files["tokenizer_config.json"]["eos_token"], "<|endoftext|>");
  EXPECT_EQ(files["tokenizer_config.json"]["model_max_length"], 64);
  EXPECT_EQ(files["generation_config.json"]["eos_token_id"], 256);
}

TEST(TextFiles, TheRunsBeginTokenStandsAloneBeforeAText) {
  const Json tokenizer = parsed(R"({
    "added_tokens": [{"id": 1, "content": "<s>"}, {"id": 2, "content": "</s>"}],
    "model": {"vocab": {"a": 0, "<s>": 1, "</s>": 2}},
    "post_processor": {"type": "Sequence", "processors": [
      {"type": "ByteLevel"}, {"type": "TemplateProcessing", "single": "a text and </s>"}]}})");
  auto files = files_of({"made", 1, 2}, tokenizer);
  const Json& processors = files["tokenizer.json"]["post_processor"]["processors"];
  ASSERT_EQ(processors.size(), 2u);
  EXPECT_EQ(processors[0], parsed(R"({"type": "ByteLevel"})"));
  EXPECT_EQ(processors[1]["single"].size(), 2u);
  EXPECT_EQ(processors[1]["single"][0]["SpecialToken"]["id"], "<s>");
  EXPECT_EQ(files["tokenizer_config.json"]["bos_token"], "<s>");
  EXPECT_EQ(files["tokenizer_config.json"]["eos_token"], "</s>");
  EXPECT_EQ(files["tokenizer.json"]["model"], sorted(tokenizer["model"]));

  files = files_of({"made", 7, 0}, tokenizer);  // 7 has no text, 0 is of the vocabulary alone
  EXPECT_EQ(files["tokenizer.json"]["post_processor"], sorted(tokenizer["post_processor"]));
  EXPECT_FALSE(files["tokenizer_config.json"].contains("bos_token"));
  EXPECT_EQ(files["tokenizer_config.json"]["eos_token"], "a");
  EXPECT_EQ(files["generation_config.json"]["bos_token_id"], 7);
}

TEST(TextFiles, ARecordHasABeginTokenOrItIsTheEnds) {
  EXPECT_EQ(parse_tokenizer_record(R"({"tokenizer": "bytes", "eot_token": 256})", "m").begin_token, 256);
  EXPECT_EQ(parse_tokenizer_record(R"({"tokenizer": "x", "eot_token": 2, "begin_token": 1})", "m").begin_token,
            1);
  for (const char* bad :
       {"[]", "{}", R"({"tokenizer": 1, "eot_token": 2})", R"({"tokenizer": "x"})",
        R"({"tokenizer": "x", "eot_token": -1})", R"({"tokenizer": "x", "eot_token": 99999999999})",
        R"({"tokenizer": "x", "eot_token": 2, "begin_token": "<s>"})"})
    EXPECT_CONTAINS(message_of<InputError>([&] { parse_tokenizer_record(bad, "meta"); }), "meta: ") << bad;
}

TEST(TextFiles, ConfigJsonKeepsTheTokensThatItNames) {
  const TokenizerRecord record{"x", 1, 2};
  const Json filled = parsed(with_text_tokens(R"({"bos_token_id": null, "eos_token_id": 5})", record));
  EXPECT_EQ(filled, parsed(R"({"bos_token_id": 1, "eos_token_id": 5})"));
  EXPECT_EQ(with_text_tokens("{}", std::nullopt), "{}");
}

}  // namespace
}  // namespace switchyard::checkpoint
