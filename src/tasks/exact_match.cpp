#include "tasks/exact_match.h"

#include <algorithm>
#include <array>

namespace switchyard::tasks {

namespace {

constexpr std::array<std::string_view, 3> kStops = {"Question:", "</s>", "<|im_end|>"};
constexpr std::string_view kMark = "#### ";

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_of_number(char c) { return is_digit(c) || c == '.' || c == ','; }
bool is_of_price(char c) { return is_of_number(c) || c == '$'; }

template <class Is>
std::size_t end_of_run(std::string_view text, std::size_t at, Is is) {
  while (at < text.size() && is(text[at])) ++at;
  return at;
}

// Without what lm_eval ignores (regexes_to_ignore), in its order.
std::string bare(std::string_view text) {
  std::string result;
  std::copy_if(text.begin(), text.end(), std::back_inserter(result),
               [](char c) { return c != ',' && c != '$'; });
  if (const std::size_t mark = result.rfind(kMark); mark != std::string::npos)
    result.erase(0, mark + kMark.size());
  // "\.$": before a newline that ends the text, too.
  const std::size_t end = result.ends_with('\n') ? result.size() - 1 : result.size();
  if (end > 0 && result[end - 1] == '.') result.erase(end - 1, 1);
  std::transform(result.begin(), result.end(), result.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  return result;
}

}  // namespace

std::span<const std::string_view> stop_strings() { return kStops; }

std::string_view before_stop(std::string_view text) {
  for (const std::string_view stop : kStops) text = text.substr(0, text.find(stop));
  return text;
}

// #### (\-?[0-9\.\,]+)
std::string strict_match(std::string_view text) {
  for (std::size_t at = text.find(kMark); at != std::string_view::npos; at = text.find(kMark, at + 1)) {
    const std::size_t begin = at + kMark.size();
    const std::size_t digits = begin < text.size() && text[begin] == '-' ? begin + 1 : begin;
    const std::size_t end = end_of_run(text, digits, is_of_number);
    if (end > digits) return std::string(text.substr(begin, end - begin));
  }
  return std::string(kNoAnswer);
}

// (-?[$0-9.,]{2,})|(-?[0-9]+)
std::string flexible_extract(std::string_view text) {
  std::string_view last = kNoAnswer;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t body = text[at] == '-' ? at + 1 : at;
    std::size_t end = end_of_run(text, body, is_of_price);
    if (end < body + 2) end = end_of_run(text, body, is_digit);
    if (end == body) {
      ++at;
      continue;
    }
    last = text.substr(at, end - at);
    at = end;
  }
  return std::string(last);
}

bool is_exact_match(std::string_view answer, std::string_view target) { return bare(answer) == bare(target); }

}  // namespace switchyard::tasks
