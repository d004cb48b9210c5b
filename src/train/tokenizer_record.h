// Which tokenizer made a run's data, so that a checkpoint can turn text to tokens without the data.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "config/config.h"

namespace switchyard::train {

constexpr const char* kTokenizerMeta = "tokenizer_meta.json";  // its name, hash and end-of-text token
constexpr const char* kTokenizer = "tokenizer.json";           // itself, unless it is the byte tokenizer

// (name, content) of the files for a checkpoint, from meta.json and tokenizer.json beside the training shards.
// None where there are no such files, or where they are not the same beside all shards.
std::vector<std::pair<std::string, std::string>> tokenizer_files(const config::Data& data);

}  // namespace switchyard::train
