#include "tasks/python_text.h"

#include "core/utf8.h"
#include "tokenizer/unicode.h"

namespace switchyard::tasks {

namespace {

bool is_continuation(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

// isspace(): White_Space and the four separators of ASCII.
bool is_python_space(std::string_view character) {
  const char32_t code = code_of(character);
  return (code >= 0x1C && code <= 0x1F) || tokenizer::is_space(code);
}

}  // namespace

std::string_view right_stripped(std::string_view text) {
  while (!text.empty()) {
    std::size_t last = text.size() - 1;
    while (last > 0 && is_continuation(text[last])) --last;
    if (!is_python_space(text.substr(last))) break;
    text = text.substr(0, last);
  }
  return text;
}

std::string_view stripped(std::string_view text) {
  text = right_stripped(text);
  while (!text.empty()) {
    const std::size_t size = character_size(text, 0);
    if (!is_python_space(text.substr(0, size))) break;
    text.remove_prefix(size);
  }
  return text;
}

std::string capitalised(std::string_view text) {
  std::string result;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t size = character_size(text, at);
    const char32_t code = code_of(text.substr(at, size));
    if (at == 0) {
      append_utf8(result, tokenizer::titlecase(code));
    } else {
      tokenizer::append_lowercase(result, code);
    }
    at += size;
  }
  return result;
}

std::string replaced(std::string_view text, std::string_view from, std::string_view to) {
  std::string result;
  for (;;) {
    const std::size_t at = text.find(from);
    result += text.substr(0, at);
    if (at == std::string_view::npos) return result;
    result += to;
    text.remove_prefix(at + from.size());
  }
}

std::int64_t n_characters(std::string_view text) {
  std::int64_t n = 0;
  for (const char byte : text) n += is_continuation(byte) ? 0 : 1;
  return n;
}

}  // namespace switchyard::tasks
