// Regular expressions of tokenizer.json files, by PCRE2 with Unicode classes.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace switchyard::tokenizer {

class Pattern {
 public:
  // `where` names the JSON path in the InputError that an expression which cannot be compiled throws.
  Pattern(const std::string& expression, const std::string& where);
  // Calls found(begin, end) for every match, from left to right. `text` is valid UTF-8.
  void each_match(std::string_view text, const std::function<void(std::size_t, std::size_t)>& found) const;

 private:
  std::shared_ptr<void> code_;
};

}  // namespace switchyard::tokenizer
