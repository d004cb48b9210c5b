// What a resumed run depends on beside its configuration: the shards behind its paths, and the tokens in them.
#pragma once

#include <string>
#include <vector>

#include "config/config.h"
#include "train/token_data.h"

namespace switchyard::train {

// JSON for a checkpoint: {"train": [shard ...], "validation": [shard ...], "tokenizer": ... or null}. A shard
// is
// {"domain", "name", "tokens", "token_bytes", "crc32"} in the order in which it is read; its directory may
// move. "tokenizer" is what tokenizer_record.h says of the training data.
std::string data_fingerprint(const std::vector<Domain>& train, const std::vector<Domain>& validation,
                             const config::Data& data);

// The first difference between a checkpoint's fingerprint and today's, as "data.train: d/train_000001.bin ...";
// empty: none.
std::string first_difference_of_data(const std::string& before, const std::string& now);

}  // namespace switchyard::train
