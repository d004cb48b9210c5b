// UTF-8: where a text stops being it, and a stream of bytes cut at whole characters.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace switchyard {

struct Character {
  enum class State { whole, cut, broken };  // cut: the text ends before the character does
  State state;
  std::size_t size;  // in bytes; of one that is not whole: the longest beginning that could have become one
};
Character character_at(std::string_view text, std::size_t at);
std::optional<std::size_t> first_invalid_byte(std::string_view text);
inline bool is_utf8(std::string_view text) { return !first_invalid_byte(text); }

// Of text that is UTF-8, which is not checked.
std::size_t character_size(std::string_view text, std::size_t at);  // in bytes
char32_t code_of(std::string_view character);                       // of one whole character
void append_utf8(std::string& text, char32_t code);

// Takes bytes as they come and gives back whole characters. The longest valid beginning of one that does not
// go on, or a byte that begins none, becomes one U+FFFD: "substitution of maximal subparts" of the Unicode
// standard (3.9), which Rust, Python and Hugging Face's `tokenizers` follow.
class Utf8Stream {
 public:
  std::string push(std::string_view bytes);
  std::string finish();  // what is left, as U+FFFD

 private:
  std::string take(bool last);
  std::string pending_;
};

}  // namespace switchyard
