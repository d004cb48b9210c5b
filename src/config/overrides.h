// Overrides from the command line: "a.b=value" on top of a configuration's text.
#pragma once

#include <string>

#include "config/section.h"

namespace switchyard::config {

// Puts the value at its path into `root`, making objects on the way where the text has none, and tells
// `source`, so that messages about the value name the override. The value is JSON, or else a string as it
// stands. A part of the path that is an array's element is its index. Throws InputError: no '=', an empty part,
// no such element, a part below something that holds no keys, a value that is neither JSON nor UTF-8.
void apply_override(Json& root, const std::string& text, Source& source);

}  // namespace switchyard::config
