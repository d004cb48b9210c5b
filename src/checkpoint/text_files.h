// What transformers needs beside a model's weights to turn text to tokens and to stop.
#pragma once

#include <cstdint>
#include <string>

#include "checkpoint/tokenizer_record.h"

namespace switchyard::checkpoint {

// (name, content) of tokenizer.json, tokenizer_config.json and generation_config.json. `tokenizer_json`: the
// run's tokenizer, of which the tokens around a text become the run's: its begin token alone, before it; not
// read for the byte tokenizer, which becomes a byte-level BPE without merges. A token of the record that the
// tokenizer has no text for is left out of the files that name tokens by their text; a warning names it. Throws
// InputError naming `origin` where `tokenizer_json` is no tokenizer.json.
NamedTexts text_files(const TokenizerRecord& record, const std::string& tokenizer_json,
                      std::int64_t max_position_embeddings, const std::string& origin);

}  // namespace switchyard::checkpoint
