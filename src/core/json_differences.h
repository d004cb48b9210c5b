// Where two JSON values differ.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"

namespace switchyard {

// The paths of values that are not in both or not the same, as {"train.lr", "data.train.0.path"}; none where
// the two are equal. Elements that only `b` has are called "-".
std::vector<std::string> differing_paths(const Json& a, const Json& b);

// What stands at such a path; null where there is nothing.
const Json* find_path(const Json& json, std::string_view path);

}  // namespace switchyard
