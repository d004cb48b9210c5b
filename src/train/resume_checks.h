// Whether a run goes on as it began, and what is said where it does not.
#pragma once

#include <filesystem>
#include <string>

#include "checkpoint/checkpoint.h"
#include "config/config.h"

namespace switchyard::train {

// The options of the router in which the two differ, as `router.type is "lpr", in the checkpoint "top_p"; ...`;
// empty: none.
std::string router_differences(const config::Run& run, const checkpoint::Checkpoint& checkpoint);

// `data`: the fingerprint of today's (data_fingerprint.h). Throws InputError, naming the first difference,
// where it is not the checkpoint's and `allow_new` is false; warns of it where that is true, and of a
// checkpoint without one.
void check_data(const checkpoint::Checkpoint& checkpoint, const std::string& data, bool allow_new);

// Names every key in which the configurations differ, and a learning rate that jumps.
void warn_of_changes(const config::Run& run, const checkpoint::Checkpoint& checkpoint);

// Where documents of the training data begin or end with another token than those that the model in `directory`
// was trained on.
void warn_of_other_tokens(const config::Data& run_data, const std::filesystem::path& directory);

}  // namespace switchyard::train
