// Python's methods of str, since prompts are to equal those that Python makes of the same files.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace switchyard::tasks {

// Of text that is UTF-8, which is not checked.
std::string_view stripped(std::string_view text);        // strip()
std::string_view right_stripped(std::string_view text);  // rstrip()
std::string capitalised(std::string_view text);          // capitalize(): the rest becomes lower case
std::string replaced(std::string_view text, std::string_view from, std::string_view to);  // replace()
std::int64_t n_characters(std::string_view text);                                         // len()

}  // namespace switchyard::tasks
