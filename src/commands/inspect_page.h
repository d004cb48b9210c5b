// What `switchyard inspect` prints of a checkpoint or a Hugging Face model directory: one page, a line or two a
// fact.
#pragma once

#include <string>

#include "checkpoint/model_directory.h"

namespace switchyard::commands {

// Bytes of a checkpoint's files, or of the weights of a Hugging Face directory.
std::uint64_t bytes_of(const checkpoint::ModelDirectory& directory);

// The page, "name  value" a line, values aligned; a long value goes on below itself. Of domains only the first
// few are named, with their number.
std::string model_page(const checkpoint::ModelDirectory& directory);

}  // namespace switchyard::commands
