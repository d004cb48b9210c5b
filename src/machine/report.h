// Facts and findings as people and programs read them.
#pragma once

#include <string>
#include <vector>

#include "core/json.h"
#include "machine/facts.h"
#include "machine/findings.h"

namespace switchyard::machine {

// "name  value" a line, then the findings.
std::vector<std::string> lines_of(const MachineFacts& facts, const std::vector<Finding>& findings);
// The same; without the directory's path.
Json json_of(const MachineFacts& facts, const std::vector<Finding>& findings);

}  // namespace switchyard::machine
