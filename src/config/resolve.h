// The whole of a run as JSON, every default filled in.
#pragma once

#include <string>

#include "config/config.h"

namespace switchyard::config {

// parse_run of the text gives an equal Run. Does not read run.resolved_json.
std::string to_resolved_json(const Run& run);

}  // namespace switchyard::config
