// What `switchyard plan` prints: JSON, or a page for people.
#pragma once

#include "commands/plan_answer.h"
#include "core/json.h"

namespace switchyard::commands {

Json json_of(const Plan& plan);
void print(const Plan& plan);  // to standard output

}  // namespace switchyard::commands
