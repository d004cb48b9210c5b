// Which tokenizer made a run's data, so that a checkpoint can turn text to tokens without the data.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "config/config.h"
#include "data/dataset.h"

namespace switchyard::train {

constexpr const char* kTokenizerMeta = "tokenizer_meta.json";  // its name, hash, end-of-text and begin token
constexpr const char* kTokenizer = "tokenizer.json";           // itself, unless it is the byte tokenizer

// (name, content) of the files for a checkpoint, from meta.json and tokenizer.json beside the training shards.
// None where there are no such files, or where they are not the same beside all shards.
std::vector<std::pair<std::string, std::string>> tokenizer_files(const config::Data& data);

// The tokens that the documents of a model's training data began and ended with, by what its directory says:
// the record of a run, or else bos_token_id and eos_token_id of generation_config.json or config.json. A list
// of several ends says nothing here.
data::SpecialTokens special_tokens_of_model(const std::filesystem::path& directory);

// The tokenizer.json files that lie beside training shards and made them: not where meta.json says "bytes".
std::vector<std::filesystem::path> tokenizers_beside(const config::Data& data);

}  // namespace switchyard::train
