#include "tokenizer/code_set.h"

#include <algorithm>
#include <charconv>
#include <cstdint>

#include "core/error.h"

namespace switchyard::tokenizer {

CodeSet::CodeSet(std::string_view text) {
  const char* at = text.data();
  const char* const end = at + text.size();
  const auto number = [&] {
    std::uint32_t value = 0;
    const auto [stop, error] = std::from_chars(at, end, value, 16);
    SY_CHECK(error == std::errc(), "\"{}\" has no number at {}", text, at - text.data());
    at = stop;
    return static_cast<char32_t>(value);
  };
  for (; at < end; ++at) {
    const char32_t first = number();
    char32_t last = first;
    if (at < end && *at == '-') ++at, last = number();
    ranges_.emplace_back(first, last);
  }
  std::sort(ranges_.begin(), ranges_.end());
}

bool CodeSet::contains(char32_t code) const {
  const auto behind = std::upper_bound(ranges_.begin(), ranges_.end(), code,
                                       [](char32_t c, const auto& range) { return c < range.first; });
  return behind != ranges_.begin() && code <= std::prev(behind)->second;
}

}  // namespace switchyard::tokenizer
