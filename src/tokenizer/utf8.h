// UTF-8: where a text stops being it, and a stream of bytes cut at whole characters.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace switchyard::tokenizer {

// Bytes of the character at `at`; 0 where there is none. `*cut` is set where the text ends too early for one
// that began well.
std::size_t character_size(std::string_view text, std::size_t at, bool* cut = nullptr);
std::optional<std::size_t> first_invalid_byte(std::string_view text);
void append_utf8(std::string& text, char32_t code);
char32_t code_of(std::string_view character);  // of one whole character

// Takes bytes as they come and gives back whole characters; a byte that is part of none becomes U+FFFD.
class Utf8Stream {
 public:
  std::string push(std::string_view bytes);
  std::string finish();  // what is left, as U+FFFD

 private:
  std::string take(bool last);
  std::string pending_;
};

}  // namespace switchyard::tokenizer
