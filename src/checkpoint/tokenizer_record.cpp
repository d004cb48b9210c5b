#include "checkpoint/tokenizer_record.h"

#include <fmt/format.h>

#include <optional>
#include <set>
#include <utility>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "data/shard_paths.h"

namespace switchyard::checkpoint {

namespace fs = std::filesystem;

TokenizerRecord parse_tokenizer_record(const std::string& text, const std::string& origin) {
  const Json meta = parse_stored_json(text, origin);
  const auto token = [&](const char* key) {
    const std::optional<std::uint64_t> found = meta[key].whole();
    if (!found || *found > INT32_MAX)
      throw_input("{}: \"{}\" is not a token; prepare the data again, or correct it", origin, key);
    return static_cast<std::int64_t>(*found);
  };
  if (!meta["tokenizer"].is_string())
    throw_input("{}: names no tokenizer; prepare the data again, or correct it", origin);
  const std::int64_t eot = token("eot_token");
  return {meta["tokenizer"].text(), meta.contains("begin_token") ? token("begin_token") : eot, eot};
}

std::optional<TokenizerRecord> tokenizer_record_in(const fs::path& directory) {
  const fs::path path = directory / kTokenizerMeta;
  if (!fs::exists(path)) return std::nullopt;
  return parse_tokenizer_record(read_text_file(path), path.string());
}

std::optional<TokenizerRecord> record_of(const NamedTexts& files) {
  for (const auto& [name, text] : files)
    if (name == kTokenizerMeta) return parse_tokenizer_record(text, name);
  return std::nullopt;
}

std::string with_text_tokens(const std::string& config_json, const std::optional<TokenizerRecord>& record) {
  if (!record) return config_json;
  Json config = parse_stored_json(config_json, "config.json");
  const auto put = [&](const char* key, std::int64_t token) {
    if (config[key].is_null()) config[key] = token;
  };
  put("bos_token_id", record->begin_token);
  put("eos_token_id", record->eot_token);
  return to_text(config);
}

namespace {

// None where shards have been moved: a trainer says so when it opens them, and weights are worth saving all the
// same.
std::set<fs::path> directories_of(const config::Data& data) {
  std::set<fs::path> directories;
  try {
    for (const config::DataEntry& entry : data.train)
      for (const fs::path& shard : data::expand_shards(entry.path)) directories.insert(shard.parent_path());
  } catch (const InputError&) {
    return {};
  }
  return directories;
}

// Null where there is none, or where it is not JSON.
Json meta_in(const fs::path& directory) {
  if (!fs::exists(directory / "meta.json")) return {};
  return try_parse_json(read_text_file(directory / "meta.json")).value_or(Json());
}

}  // namespace

NamedTexts tokenizer_files(const config::Data& data) {
  Json record;
  fs::path stated_in;
  for (const fs::path& directory : directories_of(data)) {
    const Json meta = meta_in(directory);
    Json found;
    for (const char* key : {"tokenizer", "tokenizer_sha256", "vocab_size", "eot_token"}) {
      if (!meta.contains(key)) return {};
      found[key] = meta[key];
    }
    found["begin_token"] = meta[meta.contains("begin_token") ? "begin_token" : "eot_token"];
    for (const char* key : {"tokenizer_sha256", "begin_token"})
      if (!record.is_null() && record[key] != found[key]) return {};
    if (record.is_null()) record = found, stated_in = directory;
  }
  if (record.is_null()) return {};
  try {
    parse_tokenizer_record(to_line(record), "meta.json");
  } catch (const InputError&) {
    return {};  // no reason to lose the weights
  }
  NamedTexts files = {{kTokenizerMeta, to_text(record)}};
  if (record["tokenizer"] != "bytes") {
    if (!fs::exists(stated_in / kTokenizer)) return {};
    files.emplace_back(kTokenizer, read_text_file(stated_in / kTokenizer));
  }
  return files;
}

data::SpecialTokens special_tokens_of_model(const fs::path& directory) {
  if (const auto record = tokenizer_record_in(directory))
    return {.eot = record->eot_token, .begin = record->begin_token};
  data::SpecialTokens tokens;
  for (const char* name : {"generation_config.json", "config.json"}) {
    if (!fs::exists(directory / name)) continue;
    const Json values = try_parse_json(read_text_file(directory / name)).value_or(Json());
    const auto take = [&](std::optional<std::int64_t>& token, const char* key) {
      if (const auto* stated = values[key].get<std::int64_t>(); !token && stated != nullptr) token = *stated;
    };
    take(tokens.begin, "bos_token_id");
    take(tokens.eot, "eos_token_id");
  }
  return tokens;
}

std::vector<fs::path> tokenizers_beside(const config::Data& data) {
  std::vector<fs::path> paths;
  for (const fs::path& directory : directories_of(data)) {
    const Json meta = meta_in(directory);
    const bool bytes = meta["tokenizer"] == "bytes";
    if (!bytes && fs::exists(directory / kTokenizer)) paths.push_back(directory / kTokenizer);
  }
  return paths;
}

std::optional<std::int64_t> vocab_size_of(const std::vector<config::DataEntry>& entries) {
  constexpr std::int64_t kMultiple = 64;  // whole tiles of the classifier's product
  std::vector<fs::path> shards;
  for (const config::DataEntry& entry : entries)
    for (const fs::path& shard : data::expand_shards(entry.path)) shards.push_back(shard);
  const std::optional<std::int64_t> largest = data::vocab_size_beside(shards);
  if (!largest) return std::nullopt;
  return (*largest + kMultiple - 1) / kMultiple * kMultiple;
}

std::unique_ptr<tokenizer::Tokenizer> open_tokenizer(const std::string& name) {
  if (name == "bytes") return tokenizer::make_byte_tokenizer();
  fs::path path = name;
  if (fs::is_directory(path)) path /= kTokenizer;
  return tokenizer::load_hugging_face(path);
}

namespace {

Json read_json(const fs::path& path) {
  const std::string text = read_text_file(path);
  Json value = try_parse_json(text).value_or(Json());
  if (!value.is_object()) {
    const std::string other = stand_in(std::as_bytes(std::span(text)));
    throw_input("{}: {}", path.string(), other.empty() ? "is not a JSON object" : other);
  }
  return value;
}

std::int32_t checked_token(const Json& value, const fs::path& path, const std::string& key,
                           std::int64_t vocab_size) {
  const std::optional<std::uint64_t> token = value.whole();
  if (!token || std::cmp_greater_equal(*token, vocab_size))
    throw_input("{}: {}: {} is not a token of the model's vocabulary of {}", path.string(), key,
                to_line(sorted(value)), vocab_size);
  return static_cast<std::int32_t>(*token);
}

// The first of generation_config.json, config.json, the run's data and the tokenizer that says anything.
std::vector<std::int32_t> end_tokens(const fs::path& directory, std::int64_t vocab_size,
                                     std::optional<std::int32_t> of_run,
                                     const tokenizer::Tokenizer* tokenizer) {
  for (const char* name : {"generation_config.json", "config.json"}) {
    if (!fs::exists(directory / name)) continue;
    const Json values = read_json(directory / name);
    const Json& value = values["eos_token_id"];
    if (value.is_null()) continue;
    std::vector<std::int32_t> tokens;
    for (const Json& token : value.is_array() ? value.array() : Json::Array{value})
      tokens.push_back(checked_token(token, directory / name, "eos_token_id", vocab_size));
    return tokens;
  }
  if (of_run) return {*of_run};
  if (tokenizer && tokenizer->end_of_text()) return {*tokenizer->end_of_text()};
  return {};
}

}  // namespace

ModelTokenizer find_tokenizer(const fs::path& directory, const std::string& asked, std::int64_t vocab_size) {
  ModelTokenizer text;
  std::optional<std::int32_t> end_of_run;
  std::string name;
  if (const fs::path path = directory / kTokenizerMeta; fs::exists(path)) {
    const Json meta = read_json(path);
    if (meta["tokenizer"].is_string()) name = meta["tokenizer"].text();
    const auto token = [&](const char* key) -> std::optional<std::int32_t> {
      const Json& value = meta[key];
      return value.is_null() ? std::nullopt : std::optional(checked_token(value, path, key, vocab_size));
    };
    end_of_run = token("eot_token");
    text.begin_token = token("begin_token");
    if (!text.begin_token) text.begin_token = end_of_run;
  }
  if (!asked.empty()) {
    text.tokenizer = open_tokenizer(asked);
  } else if (name == "bytes") {
    text.tokenizer = tokenizer::make_byte_tokenizer();
  } else if (fs::exists(directory / kTokenizer)) {
    try {
      text.tokenizer = tokenizer::load_hugging_face(directory / kTokenizer);
    } catch (const InputError& error) {
      throw_input("{}; give another one with --tokenizer", error.what());
    }
  }
  if (text.tokenizer && text.tokenizer->vocab_size() > vocab_size)
    throw_input(
        "{}: it has tokens up to {}, the model's vocabulary is {}; give the model's own with --tokenizer",
        asked.empty() ? (directory / kTokenizer).string() : "--tokenizer " + asked,
        text.tokenizer->vocab_size() - 1, vocab_size);
  text.end_tokens = end_tokens(directory, vocab_size, end_of_run, text.tokenizer.get());
  return text;
}

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
