// Whether a run goes on as it began, and what is said where it does not.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "config/config.h"
#include "core/parameters.h"
#include "train/token_data.h"

namespace switchyard::train {

// The options of the router in which the two differ, as `router.type is "lpr", in the checkpoint "top_p"; ...`;
// empty: none.
std::string router_differences(const config::Run& run, const checkpoint::Checkpoint& checkpoint);

// Throws InputError, naming both, where the checkpoint is of another type of router.
void check_router(const config::Run& run, const checkpoint::Checkpoint& checkpoint);

// Throws InputError where a row of the run's router says something else than the checkpoint's row of that name
// (Parameter::meaning), with the options that differ. `rows`: of the run's model.
void check_meanings(const config::Run& run, const checkpoint::Checkpoint& checkpoint,
                    std::span<const Parameter> rows);

// `data`: the fingerprint of today's (data_fingerprint()). Throws InputError, naming the first difference,
// where it is not the checkpoint's and `allow_new` is false; warns of it where that is true, and of a
// checkpoint without one.
void check_data(const checkpoint::Checkpoint& checkpoint, const std::string& data, bool allow_new);

// Names every key in which the configurations differ, and says where samples are drawn in another order or the
// learning rate jumps.
void warn_of_changes(const config::Run& run, const checkpoint::Checkpoint& checkpoint);

// Where documents of the training data begin or end with another token than those that the model in `directory`
// was trained on.
std::vector<std::string> differences_of_tokens(const config::Data& run_data,
                                               const std::filesystem::path& directory);
void warn_of_other_tokens(const config::Data& run_data, const std::filesystem::path& directory);

// What a resumed run depends on beside its configuration: the shards behind its paths, and the tokens in them.

// JSON for a checkpoint: {"train": [shard ...], "validation": [shard ...], "tokenizer": ... or null}. A shard
// is
// {"domain", "name", "tokens", "token_bytes", "crc32"} in the order in which it is read; its directory may
// move. "tokenizer" is what tokenizer_record.h says of the training data.
std::string data_fingerprint(const std::vector<Domain>& train, const std::vector<Domain>& validation,
                             const config::Data& data);

// A fingerprint of what is there without reading it: no "crc32", no "tokenizer". Throws InputError where
// nothing is found.
std::string data_outline(const config::Data& data);

// The first difference between a checkpoint's fingerprint and today's, as "data.train: d/train_000001.bin ...",
// in what both say; empty: none.
std::string first_difference_of_data(const std::string& before, const std::string& now);

}  // namespace switchyard::train
