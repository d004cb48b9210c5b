#include "checkpoint/text_files.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <optional>

#include "checkpoint/json_text.h"
#include "core/error.h"
#include "core/log.h"

namespace switchyard::checkpoint {

namespace {

using nlohmann::json;  // not the ordered one, whose large objects (a vocabulary) take quadratic time

// The character that stands for a byte in a byte-level vocabulary: itself where it is printable in Latin-1,
// else one of those from U+0100 on, in order. As UTF-8: all are below U+0800.
std::string character_of(int byte, int& next) {
  const bool printable =
      (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
  const int code = printable ? byte : 0x100 + next++;
  if (code < 0x80) return {static_cast<char>(code)};
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

json special_token(std::int64_t id, const std::string& content) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", true}};
}

json byte_tokenizer() {
  constexpr int kBytes = 256;
  const std::string end_of_text = "<|endoftext|>";
  json vocab;
  int next = 0;
  for (int byte = 0; byte < kBytes; ++byte) vocab[character_of(byte, next)] = byte;
  vocab[end_of_text] = kBytes;
  const json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}};
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", json::array({special_token(kBytes, end_of_text)})},
          {"normalizer", nullptr},
          {"pre_tokenizer", byte_level},
          {"post_processor", nullptr},
          {"decoder", byte_level},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"ignore_merges", false},
            {"vocab", std::move(vocab)},
            {"merges", json::array()}}}};
}

// The text of a token; none where the tokenizer has no such token.
std::optional<std::string> content_of(const json& tokenizer, std::int64_t token) {
  for (const json& added : tokenizer.value("added_tokens", json::array()))
    if (added.is_object() && added.value("id", json()) == token && added.contains("content") &&
        added["content"].is_string())
      return added["content"].get<std::string>();
  const json model = tokenizer.value("model", json::object());
  if (model.is_object() && model.contains("vocab") && model["vocab"].is_object())
    for (const auto& [content, id] : model["vocab"].items())
      if (id == token) return content;
  return std::nullopt;
}

// What of a post-processor puts no token into a text stays: ByteLevel, which is of offsets alone.
void collect_without_tokens(const json& processor, json& kept) {
  if (!processor.is_object()) return;
  if (processor.value("type", "") == "ByteLevel") kept.push_back(processor);
  for (const json& part : processor.value("processors", json::array())) collect_without_tokens(part, kept);
}

void begin_with(json& tokenizer, std::int64_t token, const std::string& content) {
  const json special = {{"SpecialToken", {{"id", content}, {"type_id", 0}}}};
  const auto sequence = [](const char* id, int type) {
    return json{{"Sequence", {{"id", id}, {"type_id", type}}}};
  };
  json tokens;
  tokens[content] = {{"id", content}, {"ids", json::array({token})}, {"tokens", json::array({content})}};
  json processors = json::array();
  collect_without_tokens(tokenizer.value("post_processor", json()), processors);
  processors.push_back({{"type", "TemplateProcessing"},
                        {"single", json::array({special, sequence("A", 0)})},
                        {"pair", json::array({special, sequence("A", 0), sequence("B", 1)})},
                        {"special_tokens", std::move(tokens)}});
  tokenizer["post_processor"] =
      processors.size() == 1 ? processors[0] : json{{"type", "Sequence"}, {"processors", processors}};
}

}  // namespace

NamedTexts text_files(const TokenizerRecord& record, const std::string& tokenizer_json,
                      std::int64_t max_position_embeddings, const std::string& origin) {
  json tokenizer = record.tokenizer == "bytes" ? byte_tokenizer() : parse_json_text(tokenizer_json, origin);
  if (!tokenizer.is_object()) throw_input("{}: is not a JSON object; give a tokenizer.json", origin);
  json named = {{"tokenizer_class", "PreTrainedTokenizerFast"}};
  const auto begin = content_of(tokenizer, record.begin_token), end = content_of(tokenizer, record.eot_token);
  for (const auto& [token, content] : {std::pair(record.begin_token, begin), std::pair(record.eot_token, end)})
    if (!content)
      log_warning(fmt::format("{}: has no token {}, which the run's data have; a text will be without it",
                              origin, token));
  if (begin) {
    begin_with(tokenizer, record.begin_token, *begin);
    named["bos_token"] = *begin;
  }
  if (end) named["eos_token"] = named["pad_token"] = *end;
  named["model_max_length"] = max_position_embeddings;
  named["clean_up_tokenization_spaces"] = false;
  const json generation = {{"bos_token_id", record.begin_token},
                           {"eos_token_id", record.eot_token},
                           {"pad_token_id", record.eot_token}};
  return {{kTokenizer, tokenizer.dump(2) + "\n"},
          {"tokenizer_config.json", named.dump(2) + "\n"},
          {"generation_config.json", generation.dump(2) + "\n"}};
}

}  // namespace switchyard::checkpoint
