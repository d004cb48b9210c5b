// What was measured (measure.h), for a person and for a program: the same numbers.
#pragma once

#include <string>
#include <vector>

#include "bench/measure.h"
#include "core/json.h"

namespace switchyard::bench {

// Lines for people.
std::vector<std::string> lines_of(const Report& report, const Subject& subject, const Settings& settings,
                                  Device device);
// Seconds, bytes, FLOPs and shares.
Json json_of(const Report& report, const Subject& subject, const Settings& settings, Device device);

}  // namespace switchyard::bench
