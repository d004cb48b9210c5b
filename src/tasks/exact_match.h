// What lm_eval 0.4.13 takes for the answer in a text that was generated for GSM8K, and when it is right.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace switchyard::tasks {

// Where lm_eval ends a text that goes on: the beginning of the next question, and names of tokens that end a
// text.
std::span<const std::string_view> stop_strings();
// The text before the first of them.
std::string_view before_stop(std::string_view text);

constexpr std::string_view kNoAnswer = "[invalid]";
std::string strict_match(std::string_view text);      // of the first "#### NUMBER"; else kNoAnswer
std::string flexible_extract(std::string_view text);  // the last number; else kNoAnswer
// Whether an extracted answer is that of `target`, a whole answer of the file: without commas, "$", what stands
// up to the last "#### ", and a full stop at the end.
bool is_exact_match(std::string_view answer, std::string_view target);

}  // namespace switchyard::tasks
