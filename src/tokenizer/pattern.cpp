#define PCRE2_CODE_UNIT_WIDTH 8
#include "tokenizer/pattern.h"

#include <pcre2.h>

#include "core/error.h"

namespace switchyard::tokenizer {

namespace {

// PCRE2's \s holds U+180E, which has not been white space since Unicode 6.3; here it is the property itself.
constexpr const char* kSpaces =
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{"
    "3000}";

std::string with_unicode_spaces(const std::string& expression, const std::string& where) {
  std::string out;
  bool in_class = false;
  for (std::size_t i = 0; i < expression.size(); ++i) {
    const char c = expression[i];
    if (c == '\\' && i + 1 < expression.size()) {
      const char kind = expression[++i];
      if (kind == 's') {
        out += in_class ? kSpaces : fmt::format("[{}]", kSpaces);
      } else if (kind == 'S') {
        if (in_class) throw_input("{}: \\S within brackets is not supported", where);
        out += fmt::format("[^{}]", kSpaces);
      } else {
        out += {c, kind};
      }
      continue;
    }
    if (c == '[') in_class = true;
    if (c == ']') in_class = false;
    out += c;
  }
  return out;
}

}  // namespace

Pattern::Pattern(const std::string& expression, const std::string& where) {
  const std::string translated = with_unicode_spaces(expression, where);
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                   PCRE2_UTF | PCRE2_UCP, &error, &offset, nullptr);
  if (!code) {
    PCRE2_UCHAR message[256];
    pcre2_get_error_message(error, message, sizeof message);
    throw_input("{}: the expression cannot be compiled: {}", where, reinterpret_cast<const char*>(message));
  }
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where there is none, matching is only slower
  code_ = {code, [](void* p) { pcre2_code_free(static_cast<pcre2_code*>(p)); }};
}

void Pattern::each_match(std::string_view text,
                         const std::function<void(std::size_t, std::size_t)>& found) const {
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> match(
      pcre2_match_data_create(1, nullptr), pcre2_match_data_free);
  std::size_t at = 0;
  while (at < text.size()) {
    const int status = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                                   PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, match.get(), nullptr);
    if (status == PCRE2_ERROR_NOMATCH) return;
    if (status < 0)
      throw_input("byte {} of the text: the tokenizer's expression failed with code {}", at, status);
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(match.get());
    found(ends[0], ends[1]);
    at = ends[1];
  }
}

}  // namespace switchyard::tokenizer
