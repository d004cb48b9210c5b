#include "checkpoint/tokenizer_record.h"

#include <set>
#include <utility>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "data/dataset.h"

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
    throw_input("{}: {}: {} is not a token of the model's vocabulary of {}", path.string(), key, to_line(value),
                vocab_size);
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
    text.tokenizer = tokenizer::load_hugging_face(directory / kTokenizer);
  }
  if (text.tokenizer && text.tokenizer->vocab_size() > vocab_size)
    throw_input("--tokenizer: it has tokens up to {}, the model's vocabulary is {}; give the model's own",
                text.tokenizer->vocab_size() - 1, vocab_size);
  text.end_tokens = end_tokens(directory, vocab_size, end_of_run, text.tokenizer.get());
  return text;
}

}  // namespace switchyard::checkpoint
