#include "core/error.h"

#include <algorithm>

namespace switchyard {

namespace {

bool is_control(char c) { return (c >= 0 && c < ' ') || c == '\x7f'; }

}  // namespace

std::string one_line(std::string text) {
  // Nearly every message: none is built anew, and less memory asked for, which may be what it is about.
  if (std::none_of(text.begin(), text.end(), is_control)) return text;
  std::string line;
  for (const char c : text) {
    if (!is_control(c)) {
      line += c;
    } else if (c == '\n') {
      line += "\\n";
    } else if (c == '\r') {
      line += "\\r";
    } else if (c == '\t') {
      line += "\\t";
    } else {
      line += fmt::format("\\u{:04x}", static_cast<int>(c));
    }
  }
  return line;
}

void throw_broken_invariant(const char* expression, const char* file, int line, const std::string& why) {
  throw std::logic_error(
      fmt::format("internal error: {} [{} at {}:{}]; please report it", why, expression, file, line));
}

}  // namespace switchyard
