// Regular expressions of tokenizer.json files, by Oniguruma with the syntax and options of Hugging Face's
// library.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard::tokenizer {

// Bytes [begin, end) of a text; `matched`: what was looked for, else what lies between.
struct Match {
  std::size_t begin, end;
  bool matched;
};

class Pattern {
 public:
  // `where` names the JSON path in the InputError that an expression which cannot be compiled throws.
  Pattern(const std::string& expression, const std::string& where);
  static Pattern literal(std::string text);  // that text itself

  // The whole of a text that is UTF-8, in order. Matches may be empty, the rest is not; no two matches end at
  // one place. Throws InputError where the search is given up because it takes too many steps.
  std::vector<Match> cut(std::string_view text) const;

 private:
  Pattern() = default;
  bool search(std::string_view text, std::size_t from, std::size_t& begin, std::size_t& end) const;

  std::string literal_, where_;
  std::shared_ptr<void> expression_;  // null: the literal
};

}  // namespace switchyard::tokenizer
