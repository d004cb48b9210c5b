// JSON that comes from outside: a bounded depth, no key twice, and names that are safe to print.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace switchyard::checkpoint {

// Throws InputError naming `origin`: not JSON, nested deeper than anything of ours, or a key twice in one
// object.
nlohmann::ordered_json parse_ordered_json_text(std::string_view text, const std::string& origin);
nlohmann::json parse_json_text(std::string_view text, const std::string& origin);

std::string printable(std::string_view name);  // at most 200 bytes, control characters as '?'
std::string in_quotes(std::string_view name);  // the same in double quotes

// True for the name of a file in the same directory: no path, not "." or "..".
bool is_plain_file_name(std::string_view name);

}  // namespace switchyard::checkpoint
