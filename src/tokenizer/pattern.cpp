#include "tokenizer/pattern.h"

#include <oniguruma.h>

#include <algorithm>
#include <cctype>

#include "core/error.h"
#include "core/json.h"
#include "core/utf8.h"
#include "tokenizer/unicode.h"

namespace switchyard::tokenizer {

namespace {

const OnigUChar* bytes(std::string_view text) { return reinterpret_cast<const OnigUChar*>(text.data()); }

std::string message_of(int code, OnigErrorInfo* info) {
  OnigUChar message[ONIG_MAX_ERROR_MESSAGE_LEN];
  const int size = onig_error_code_to_str(message, code, info);
  return {reinterpret_cast<const char*>(message), static_cast<std::size_t>(size)};
}

// \p{Word} outside of brackets is \w to the library's Oniguruma, and not quite to older ones.
std::string with_word_properties(const std::string& expression) {
  std::string out;
  int depth = 0;
  for (std::size_t i = 0; i < expression.size(); ++i) {
    const char c = expression[i];
    if (c == '[') ++depth;
    if (c == ']' && depth > 0) --depth;
    out += c;
    if (c != '\\' || i + 1 == expression.size()) continue;
    const char kind = expression[++i];
    const std::size_t end = expression.find('}', i);
    if (depth == 0 && (kind == 'p' || kind == 'P') && end != std::string::npos && expression[i + 1] == '{') {
      std::string name = expression.substr(i + 2, end - i - 2);
      const bool inverted = (kind == 'P') != name.starts_with('^');
      std::erase_if(name, [](char n) { return n == '^' || n == ' ' || n == '_' || n == '-'; });
      std::transform(name.begin(), name.end(), name.begin(), [](unsigned char n) { return std::tolower(n); });
      if (name == "word") {
        out += inverted ? 'W' : 'w';
        i = end;
        continue;
      }
    }
    out += kind;
  }
  return out;
}

}  // namespace

Pattern::Pattern(const std::string& expression, const std::string& where) : where_(where) {
  static const int initialized = [] {
    OnigEncoding encodings[] = {expression_encoding()};
    return onig_initialize(encodings, 1);
  }();
  SY_CHECK(initialized == ONIG_NORMAL, "Oniguruma cannot be initialised: {}", initialized);
  if (const auto at = first_invalid_byte(expression))
    throw_input("{}: the expression is not UTF-8 at byte {}", where, *at);
  regex_t* regex = nullptr;
  OnigErrorInfo info;
  const std::string rewritten = with_word_properties(expression);
  const OnigUChar* begin = bytes(rewritten);
  // The syntax is Oniguruma's own, not Ruby's, which differs in the names and options that it takes.
  const int status = onig_new(&regex, begin, begin + rewritten.size(), ONIG_OPTION_NONE, expression_encoding(),
                              ONIG_SYNTAX_ONIGURUMA, &info);
  if (status != ONIG_NORMAL)
    throw_input("{}: Oniguruma does not accept the expression: {}", where,
                printable(message_of(status, &info)));
  expression_ = {regex, [](void* p) { onig_free(static_cast<regex_t*>(p)); }};
}

Pattern Pattern::literal(std::string text) {
  Pattern pattern;
  pattern.literal_ = std::move(text);
  return pattern;
}

bool Pattern::search(std::string_view text, std::size_t from, std::size_t& begin, std::size_t& end) const {
  if (!expression_) {
    begin = text.find(literal_, from);
    end = begin + literal_.size();
    return begin != std::string_view::npos;
  }
  static const auto free_region = [](OnigRegion* region) { onig_region_free(region, 1); };
  static thread_local const std::unique_ptr<OnigRegion, decltype(free_region)> region(onig_region_new(),
                                                                                      free_region);
  const OnigUChar* first = bytes(text);
  const OnigUChar* last = first + text.size();
  const int status = onig_search(static_cast<regex_t*>(expression_.get()), first, last, first + from, last,
                                 region.get(), ONIG_OPTION_NONE);
  if (status == ONIG_MISMATCH) return false;
  if (status < 0)
    throw_input("{}: the expression fails at byte {} of the text: {}", where_, from,
                message_of(status, nullptr));
  begin = static_cast<std::size_t>(region->beg[0]);
  end = static_cast<std::size_t>(region->end[0]);
  return true;
}

std::vector<Match> Pattern::cut(std::string_view text) const {
  std::vector<Match> all;
  if (text.empty()) return all;
  std::size_t done = 0, begin = 0, end = 0;
  bool any = false;
  // An empty match right behind another one is none: the search goes on behind the next character.
  for (std::size_t from = 0; from <= text.size() && search(text, from, begin, end);) {
    if (begin == end && any && done == end) {
      from += from < text.size() ? character_size(text, from) : 1;
      continue;
    }
    if (done != begin) all.push_back({done, begin, false});
    all.push_back({begin, end, true});
    from = done = end;
    any = true;
  }
  if (done != text.size()) all.push_back({done, text.size(), false});
  return all;
}

}  // namespace switchyard::tokenizer
