#include "checkpoint/text_files.h"

#include <fmt/format.h>

#include <optional>

#include "core/error.h"
#include "core/json.h"
#include "core/log.h"

namespace switchyard::checkpoint {

namespace {

// The character that stands for a byte in a byte-level vocabulary: itself where it is printable in Latin-1,
// else one of those from U+0100 on, in order. As UTF-8: all are below U+0800.
std::string character_of(int byte, int& next) {
  const bool printable =
      (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
  const int code = printable ? byte : 0x100 + next++;
  if (code < 0x80) return {static_cast<char>(code)};
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

Json object(Json::Object members) { return Json(std::move(members)); }
Json list(Json::Array elements) { return Json(std::move(elements)); }

Json special_token(std::int64_t id, const std::string& content) {
  return object({{"id", id},
                 {"content", content},
                 {"single_word", false},
                 {"lstrip", false},
                 {"rstrip", false},
                 {"normalized", false},
                 {"special", true}});
}

Json byte_tokenizer() {
  constexpr int kBytes = 256;
  const std::string end_of_text = "<|endoftext|>";
  Json::Object vocab;
  int next = 0;
  for (int byte = 0; byte < kBytes; ++byte) vocab.push_back({character_of(byte, next), byte});
  vocab.push_back({end_of_text, kBytes});
  const Json none;
  const Json byte_level = object(
      {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}});
  return object({{"version", "1.0"},
                 {"truncation", none},
                 {"padding", none},
                 {"added_tokens", list({special_token(kBytes, end_of_text)})},
                 {"normalizer", none},
                 {"pre_tokenizer", byte_level},
                 {"post_processor", none},
                 {"decoder", byte_level},
                 {"model", object({{"type", "BPE"},
                                   {"dropout", none},
                                   {"unk_token", none},
                                   {"continuing_subword_prefix", none},
                                   {"end_of_word_suffix", none},
                                   {"fuse_unk", false},
                                   {"byte_fallback", false},
                                   {"ignore_merges", false},
                                   {"vocab", object(std::move(vocab))},
                                   {"merges", list({})}})}});
}

// The text of a token; none where the tokenizer has no such token.
std::optional<std::string> content_of(const Json& tokenizer, std::int64_t token) {
  if (const auto* added_tokens = tokenizer["added_tokens"].get<Json::Array>())
    for (const Json& added : *added_tokens)
      if (added["id"] == token && added["content"].is_string()) return added["content"].text();
  if (const auto* vocab = tokenizer["model"]["vocab"].get<Json::Object>())
    for (const auto& [content, id] : *vocab)
      if (id == token) return content;
  return std::nullopt;
}

// What of a post-processor puts no token into a text stays: ByteLevel, which is of offsets alone.
void collect_without_tokens(const Json& processor, Json::Array& kept) {
  if (processor["type"] == "ByteLevel") kept.push_back(processor);
  if (const auto* parts = processor["processors"].get<Json::Array>())
    for (const Json& part : *parts) collect_without_tokens(part, kept);
}

void begin_with(Json& tokenizer, std::int64_t token, const std::string& content) {
  const Json special = object({{"SpecialToken", object({{"id", content}, {"type_id", 0}})}});
  const auto sequence = [](const char* id, int type) {
    return object({{"Sequence", object({{"id", id}, {"type_id", type}})}});
  };
  const Json one = object({{"id", content}, {"ids", list({token})}, {"tokens", list({content})}});
  Json::Array processors;
  collect_without_tokens(std::as_const(tokenizer)["post_processor"], processors);
  processors.push_back(object({{"type", "TemplateProcessing"},
                               {"single", list({special, sequence("A", 0)})},
                               {"pair", list({special, sequence("A", 0), sequence("B", 1)})},
                               {"special_tokens", object({{content, one}})}}));
  tokenizer["post_processor"] =
      processors.size() == 1 ? processors[0]
                             : object({{"type", "Sequence"}, {"processors", list(std::move(processors))}});
}

}  // namespace

NamedTexts text_files(const TokenizerRecord& record, const std::string& tokenizer_json,
                      std::int64_t max_position_embeddings, const std::string& origin) {
  Json tokenizer = record.tokenizer == "bytes" ? byte_tokenizer() : parse_stored_json(tokenizer_json, origin);
  if (!tokenizer.is_object()) throw_input("{}: is not a JSON object; give a tokenizer.json", origin);
  Json named = object({{"tokenizer_class", "PreTrainedTokenizerFast"}});
  const auto begin = content_of(tokenizer, record.begin_token), end = content_of(tokenizer, record.eot_token);
  for (const auto& [token, content] : {std::pair(record.begin_token, begin), std::pair(record.eot_token, end)})
    if (!content)
      log_warning(fmt::format("{}: has no token {}, which the run's data have; a text will be without it",
                              origin, token));
  if (begin) {
    begin_with(tokenizer, record.begin_token, *begin);
    named["bos_token"] = *begin;
  }
  if (end) {
    named["eos_token"] = *end;
    named["pad_token"] = *end;
  }
  named["model_max_length"] = max_position_embeddings;
  named["clean_up_tokenization_spaces"] = false;
  const Json generation = object({{"bos_token_id", record.begin_token},
                                  {"eos_token_id", record.eot_token},
                                  {"pad_token_id", record.eot_token}});
  return {{kTokenizer, to_text(sorted(std::move(tokenizer)))},
          {"tokenizer_config.json", to_text(sorted(std::move(named)))},
          {"generation_config.json", to_text(generation)}};
}

}  // namespace switchyard::checkpoint
