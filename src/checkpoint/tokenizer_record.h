// Which tokenizer made a run's data, so that a checkpoint can turn text to tokens without the data; and which
// one a model's directory has; and what transformers needs to do the same.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "config/config.h"
#include "data/shard_paths.h"
#include "tokenizer/tokenizer.h"

namespace switchyard::checkpoint {

constexpr const char* kTokenizerMeta = "tokenizer_meta.json";  // its name, hash and the tokens around a text
constexpr const char* kTokenizer = "tokenizer.json";           // itself, unless it is the byte tokenizer

struct TokenizerRecord {
  std::string tokenizer;         // "bytes", or where the tokenizer.json came from
  std::int64_t begin_token = 0;  // that each document of the data begins with
  std::int64_t eot_token = 0;    // that ends a text
};

// The content of a tokenizer_meta.json. Without begin_token a document begins with eot_token. Throws InputError
// naming `origin`.
TokenizerRecord parse_tokenizer_record(const std::string& text, const std::string& origin);
// The one beside a checkpoint's weights; none where there is no such file.
std::optional<TokenizerRecord> tokenizer_record_in(const std::filesystem::path& directory);

// (name, content) of the files for a checkpoint, from meta.json and tokenizer.json beside the training shards.
// None where there are no such files, or where they are not the same beside all shards.
using NamedTexts = std::vector<std::pair<std::string, std::string>>;
NamedTexts tokenizer_files(const config::Data& data);
// The record among them.
std::optional<TokenizerRecord> record_of(const NamedTexts& files);

// A config.json with bos_token_id and eos_token_id where it has none.
std::string with_text_tokens(const std::string& config_json, const std::optional<TokenizerRecord>& record);

// The tokens that the documents of a model's training data began and ended with, by what its directory says:
// the record of a run, or else bos_token_id and eos_token_id of generation_config.json or config.json. A list
// of several ends says nothing here.
data::SpecialTokens special_tokens_of_model(const std::filesystem::path& directory);

// The tokenizer.json files that lie beside training shards and made them: not where meta.json says "bytes".
std::vector<std::filesystem::path> tokenizers_beside(const config::Data& data);

// model.vocab_size where a configuration leaves it out: the largest vocab_size that meta.json beside these
// shards states, rounded up to a multiple of 64. None where no such file states one.
std::optional<std::int64_t> vocab_size_of(const std::vector<config::DataEntry>& entries);

// "bytes", a tokenizer.json or a directory that has one. Throws InputError as tokenizer::load_hugging_face
// does.
std::unique_ptr<tokenizer::Tokenizer> open_tokenizer(const std::string& name);

// How text becomes the tokens of a model, and which of them end a text.
struct ModelTokenizer {
  std::unique_ptr<tokenizer::Tokenizer> tokenizer;  // null: none is known
  std::optional<std::int32_t> begin_token;          // that every document of a run's data begins with
  std::vector<std::int32_t> end_tokens;
};
// By what lies in a model's directory; `asked`, as open_tokenizer takes it, goes before the directory's own
// tokenizer unless it is empty. End tokens are those of the first that says anything: generation_config.json,
// config.json, the run's data, the tokenizer. Throws InputError: a token or a tokenizer beyond `vocab_size`, a
// file that is not what its name says.
ModelTokenizer find_tokenizer(const std::filesystem::path& directory, const std::string& asked,
                              std::int64_t vocab_size);

// (name, content) of tokenizer.json, tokenizer_config.json and generation_config.json. `tokenizer_json`: the
// run's tokenizer, of which the tokens around a text become the run's: its begin token alone, before it; not
// read for the byte tokenizer, which becomes a byte-level BPE without merges. A token of the record that the
// tokenizer has no text for is left out of the files that name tokens by their text; a warning names it. Throws
// InputError naming `origin` where `tokenizer_json` is no tokenizer.json.
NamedTexts text_files(const TokenizerRecord& record, const std::string& tokenizer_json,
                      std::int64_t max_position_embeddings, const std::string& origin);

}  // namespace switchyard::checkpoint
